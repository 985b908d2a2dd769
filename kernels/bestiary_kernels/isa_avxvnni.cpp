// The kernels for AVX2 with AVX-VNNI.
#define BESTIARY_VNNI
#include "vec_avx2.h"

#include "generic.h"

#include "quantized_avx2.h"

namespace bestiary {
const Table table_avxvnni = BESTIARY_TABLE("avxvnni", 24);
}
