// sparsekern._host: helpers on plain Python numbers, free of torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "host/knapsack.h"

PYBIND11_MODULE(_host, m) {
  m.doc() = "Host helpers of sparsekern; called through sparsekern.ops.";
  m.def("knapsack", &sparsekern::knapsack, pybind11::call_guard<pybind11::gil_scoped_release>());
}
