// Safetensors files (https://huggingface.co/docs/safetensors): header length, JSON header, data without holes.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "bytes.h"

namespace lora_core {

struct StoredTensor {
  std::string type;
  std::vector<uint64_t> shape;
  Bytes data;
};

struct Safetensors {
  std::map<std::string, StoredTensor> tensors;
  std::map<std::string, std::string> metadata;
  Bytes head;  // everything before the data
};

Safetensors read_safetensors(Bytes file);

}  // namespace lora_core
