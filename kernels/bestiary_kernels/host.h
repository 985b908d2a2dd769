// What this machine can do: instruction sets and threads.
#pragma once
#include "table.h"

namespace bestiary {

// The tables that run here, the slowest first; ended by null.
const Table *const *tables();

} // namespace bestiary
