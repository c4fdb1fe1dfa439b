// Shortcuts of the Python border: they accept the common case and explain nothing.
#ifndef FASTUNLEARN_BINDING_BORDER_H_
#define FASTUNLEARN_BINDING_BORDER_H_

#include <pybind11/pybind11.h>

namespace fastunlearn {

// Adds the functions that fastunlearn/targets.py finds by `shortcut`.
void register_border(pybind11::module_& module);

}  // namespace fastunlearn

#endif  // FASTUNLEARN_BINDING_BORDER_H_
