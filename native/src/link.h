// Linking: a template and an adapter become a program and its data.
#pragma once

#include "adapter.h"
#include "files.h"
#include "template.h"

namespace lora_core {

// Throws unless `adapter` was made for this template and fits it.
void check_fit(const Template& found, const Adapter& adapter);

// Writes the program, and the adapter's data to `data`; null: into the program. `check_fit` has accepted the adapter.
void link(const Template& found, const Adapter& adapter, double strength, Sink& program, Sink* data);

}  // namespace lora_core
