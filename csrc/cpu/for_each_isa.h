// Compiles SK_KERNEL_FILE once per instruction set, each time in a namespace of its own. No guard on purpose.
#include "common/keys.h"
#include "common/philox.h"
#include "cpu/isa.h"

namespace sparsekern::scalar {
#include "cpu/simd_scalar.h"
#include "cpu/simd_common.h"
#include "cpu/keys_scalar.h"
#include "cpu/keys_common.h"
#include "cpu/tile_scalar.h"
#include "cpu/tile_common.h"
#include "cpu/words_scalar.h"
#include "cpu/words_common.h"
#include SK_KERNEL_FILE
}  // namespace sparsekern::scalar

#if SK_X86
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,popcnt,bmi,bmi2,lzcnt")
namespace sparsekern::avx2 {
#include "cpu/simd_avx2.h"
#include "cpu/simd_common.h"
#include "cpu/keys_avx2.h"
#include "cpu/keys_common.h"
#include "cpu/tile_avx2.h"
#include "cpu/tile_common.h"
#include "cpu/words_avx2.h"
#include "cpu/words_common.h"
#include SK_KERNEL_FILE
}  // namespace sparsekern::avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,popcnt,bmi,bmi2,lzcnt")
namespace sparsekern::avx512 {
#include "cpu/simd_avx512.h"
#include "cpu/simd_common.h"
#include "cpu/keys_avx512.h"
#include "cpu/keys_common.h"
#include "cpu/tile_avx512.h"
#include "cpu/tile_common.h"
#include "cpu/words_avx512.h"
#include "cpu/words_common.h"
#include SK_KERNEL_FILE
}  // namespace sparsekern::avx512
#pragma GCC pop_options
#endif
