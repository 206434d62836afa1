// Linking: a template and an adapter become a program and its data.
#pragma once

#include "adapter.h"
#include "files.h"
#include "program.h"
#include "template.h"

namespace lora_core {

// Throws unless `adapter` was made for this template, or does not say for which.
void check_adapter(const Template& found, const Adapter& adapter);
// Throws unless `adapter` fits the slots of `plan`.
void check_plan(const Plan& plan, const Adapter& adapter);

// Writes the program of the adapter `name`, and its data to `data`; null: into the program.
void link(const Template& found, const std::string& name, const Adapter& adapter, double strength, Sink& program,
          Sink* data);

// Writes the one program of all adapters, `current`, with `adapter` added as the method `name`.
void link_into(const Template& found, const Program& current, const std::string& name, const Adapter& adapter,
               double strength, Sink& program);
// Writes `current` without the adapter `name`.
void unlink_from(const Template& found, const Program& current, const std::string& name, Sink& program);

}  // namespace lora_core
