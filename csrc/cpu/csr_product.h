// What a CSR product on the CPU is told, the same for every instruction set.
#pragma once
#include <cstdint>
#include <type_traits>

#include "cpu/isa.h"

namespace sparsekern {

// Element (i, j) of a dense matrix is data[i * row + j * col]; one of the strides is 1.
template <class T>
struct Dense {
  T* data = nullptr;
  int64_t height = 0, width = 0, row = 0, col = 0;
};

// A panel is a strip of columns of the dense operand, copied so that a row of it is one or two whole cache lines. bfloat16
// stays bfloat16: a 32-bit word holds lane k of an even vector below lane k of the next.
template <class T>
using PanelOf = std::conditional_t<std::is_same_v<T, double>, double, std::conditional_t<std::is_same_v<T, c10::BFloat16>, uint32_t, float>>;
template <class P>
using ArithOf = std::conditional_t<std::is_same_v<P, double>, double, float>;
template <class P>
constexpr int64_t panel_row(int vectors) {  // panel elements in a row of `vectors` * 16 lanes
  return (std::is_same_v<P, uint32_t> ? 8 : 16) * vectors;
}

// A row of a panel is two cache lines: with 4,096 rows it takes half of a second-level cache of 1 MB.
template <class T>
constexpr int kPanelVectors = std::is_same_v<T, double>          ? 1
                              : std::is_same_v<T, c10::BFloat16> ? 4
                                                                 : 2;

// out = W b + bias, W [rows, cols] with values of type N.
template <class T, class N = Arith<T>>
struct Spmm {
  const int64_t* crow;
  const int32_t* col;
  const N* val;
  const Arith<T>* bias;  // may be null
  Dense<const T> b;
  Dense<T> out;
};

// The gradients of y = x W^T from dy, in the order of the transposed pattern.
template <class T>
struct LinearBackward {
  const int64_t* crow_t;
  const int32_t* row_t;
  Dense<const T> x, dy;  // as [in, batch] and [out, batch]
  Dense<T> dx;           // as [in, batch]
};

}  // namespace sparsekern
