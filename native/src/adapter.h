// An adapter as it is linked: two matrices and a scaling for each module.
#pragma once

#include <map>
#include <string>

#include "safetensors.h"

namespace lora_core {

enum class Type { kFloat, kHalf, kBrain };  // F32, F16, BF16

struct Matrix {
  uint64_t rows = 0, columns = 0;
  Type type = Type::kFloat;
  Bytes data;

  void row(uint64_t index, float* values) const;  // writes a row; throws for NaN and infinity
  bool any() const;                               // whether anything is not zero
};

struct Update {
  Matrix a, b;  // (rank, in) and (out, rank)
  double scaling = 1;
};

struct Adapter {
  std::map<std::string, Update> updates;  // by module
  std::string foundation, template_digest;  // what it was packed for; empty if nothing says it
};

// A package, as lora_core/adapters/packages writes it, with its digest checked.
struct Package {
  std::map<std::string, std::string> fields;
  Adapter adapter;
};

Package read_package(Bytes file);
std::string package_digest(Bytes head, Bytes file);
Adapter read_peft(Bytes weights, Bytes config);

// Turns a stored tensor into a matrix; throws if it is none.
Matrix matrix_of(const std::string& name, const StoredTensor& tensor);
// Throws unless the matrices of every update fit each other.
void check_ranks(const Adapter& adapter);

}  // namespace lora_core
