#include "safetensors.h"

#include <algorithm>

#include "json.h"

namespace lora_core {
namespace {

constexpr uint64_t kLargestHeader = 100'000'000;  // the limit of the safetensors library

struct Span {
  uint64_t begin, end;
};

Span read_entry(Json& json, StoredTensor& tensor) {
  std::vector<uint64_t> offsets;
  json.object([&](const std::string& key) {
    if (key == "dtype") {
      tensor.type = json.string();
    } else if (key == "shape") {
      json.array([&] { tensor.shape.push_back(json.number()); });
    } else if (key == "data_offsets") {
      json.array([&] { offsets.push_back(json.number()); });
    } else {
      json.skip();
    }
  });
  if (offsets.size() != 2 || offsets[0] > offsets[1]) damaged("a tensor has no place in the file");
  return {offsets[0], offsets[1]};
}

uint64_t width_of(const std::string& type) {
  if (type == "F32") return 4;
  if (type == "F16" || type == "BF16") return 2;
  fail(LORA_CORE_UNSUPPORTED, "a tensor is of type " + type.substr(0, 16) + "; types are F32, F16, BF16");
}

}  // namespace

Safetensors read_safetensors(Bytes file) {
  if (file.size < 8) damaged("the file is too short for safetensors");
  const uint64_t length = number_at(file.data, 8);
  if (length > kLargestHeader) damaged("the file is no safetensors file");
  Safetensors found;
  found.head = file.part(0, 8 + length);
  const Bytes data = file.part(8 + length, file.size - 8 - length);
  std::vector<Span> spans;
  Json json(file.part(8, length).text());
  json.object([&](const std::string& name) {
    if (name == "__metadata__") {
      json.object([&](const std::string& key) {
        if (!found.metadata.emplace(key, json.string()).second) damaged("the metadata has '" + key + "' twice");
      });
      return;
    }
    StoredTensor tensor;
    const Span span = read_entry(json, tensor);
    uint64_t size = width_of(tensor.type);
    for (const uint64_t extent : tensor.shape) size = product(size, extent);
    if (size != span.end - span.begin) damaged("tensor '" + name + "' is not of its size");
    tensor.data = data.part(span.begin, size);
    if (!found.tensors.emplace(name, std::move(tensor)).second) damaged("tensor '" + name + "' is there twice");
    spans.push_back(span);
  });
  json.end();
  std::sort(spans.begin(), spans.end(), [](Span a, Span b) { return a.begin != b.begin ? a.begin < b.begin : a.end < b.end; });
  uint64_t end = 0;
  for (const Span& span : spans) {
    if (span.begin != end) damaged("the tensors leave a hole or overlap");
    end = span.end;
  }
  if (end != data.size) damaged("the data is not as long as its tensors");
  return found;
}

}  // namespace lora_core
