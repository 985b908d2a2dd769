// The kernels for AVX2 and FMA, without VNNI.
#include "vec_avx2.h"

#include "generic.h"

#include "quantized_avx2.h"

namespace bestiary {
const Table table_avx2 = BESTIARY_TABLE("avx2", 48);
}
