#include <cmath>
#include <cstdlib>

#include "adapter.h"
#include "sha256.h"

namespace lora_core {
namespace {

constexpr std::string_view kFormat = "lora-core package";
constexpr uint64_t kVersion = 1;

// The place of a field's digits in the head; its name between quotation marks cannot stand inside a text.
size_t digits_of(std::string_view head, std::string_view field, size_t count) {
  const std::string mark = "\"" + std::string(field) + "\":\"";
  const size_t found = head.find(mark);
  if (found == std::string_view::npos) return found;
  const size_t start = found + mark.size();
  if (head.find(mark, start) != std::string_view::npos || start + count >= head.size() || head[start + count] != '"') {
    damaged("field '" + std::string(field) + "' of the package is not as it is written");
  }
  return start;
}

const std::string& field_of(const Package& package, const std::string& name) {
  const auto found = package.fields.find(name);
  if (found == package.fields.end()) damaged("the package has no field '" + name + "'");
  return found->second;
}

void check_version(const Package& package) {
  const std::string& text = field_of(package, "version");
  if (text.empty() || text.size() > 9 || text[0] == '0' || text.find_first_not_of("0123456789") != text.npos) {
    damaged("the package's version is '" + text.substr(0, 16) + "'");
  }
  if (std::strtoull(text.c_str(), nullptr, 10) > kVersion) {
    fail(LORA_CORE_NEWER, "the package has version " + text + "; this library reads up to " + std::to_string(kVersion));
  }
}

int hex_digit(char each) {
  if (each >= '0' && each <= '9') return each - '0';
  if (each >= 'a' && each <= 'f') return each - 'a' + 10;
  return -1;
}

// Python's float.hex: [-]0x1.8000000000000p+3
double scaling_of(std::string_view text) {
  const std::string shown(text.substr(0, 32));
  const bool negative = !text.empty() && text[0] == '-';
  if (negative) text.remove_prefix(1);
  size_t at = 3;
  bool whole = text.size() > 5 && text.substr(0, 2) == "0x" && (text[2] == '0' || text[2] == '1');
  uint64_t bits = whole ? static_cast<uint64_t>(text[2] - '0') : 0;
  int digits = 0;
  if (whole && text[at] == '.') {
    for (++at; at < text.size() && hex_digit(text[at]) >= 0 && digits < 13; ++at, ++digits) {
      bits = bits << 4 | static_cast<uint64_t>(hex_digit(text[at]));
    }
    whole = digits > 0;
  }
  whole = whole && at + 2 < text.size() + 0 && text[at] == 'p' && (text[at + 1] == '+' || text[at + 1] == '-');
  int exponent = 0;
  for (size_t each = at + 2; whole && each < text.size(); ++each) {
    whole = text[each] >= '0' && text[each] <= '9' && exponent < 2000;
    exponent = 10 * exponent + (text[each] - '0');
  }
  if (whole && text[at + 1] == '-') exponent = -exponent;
  const double value = whole ? std::ldexp(static_cast<double>(bits), exponent - 4 * digits) : 0;
  if (!whole || !std::isfinite(value)) damaged("the package's scaling is '" + shown + "'");
  return negative ? -value : value;
}

void read_matrices(const Safetensors& file, Package& package) {
  const double usual = scaling_of(field_of(package, "scaling"));
  for (const auto& [name, tensor] : file.tensors) {
    const size_t last = name.rfind('/');
    const size_t middle = last == 0 || last == name.npos ? name.npos : name.rfind('/', last - 1);
    if (middle == name.npos) damaged("tensor '" + name + "' is no part of an update");
    const std::string module = name.substr(0, middle), part = name.substr(last + 1);
    const std::string kind = name.substr(middle + 1, last - middle - 1);
    if (kind != "low_rank" || (part != "a" && part != "b")) {
      fail(LORA_CORE_UNSUPPORTED, "tensor '" + name + "' is of a kind that this library does not link");
    }
    Update& update = package.adapter.updates[module];
    (part == "a" ? update.a : update.b) = matrix_of(name, tensor);
    const auto own = package.fields.find("scaling/" + module + "/" + kind);
    update.scaling = own == package.fields.end() ? usual : scaling_of(own->second);
  }
}

void check_fields(const Package& package) {
  for (const auto& [key, text] : package.fields) {
    static const char* const known[] = {"format", "version",    "name",   "adapter",   "foundation", "template",
                                        "plan",   "base_model", "digest", "signature", "signer",     "scaling"};
    bool expected = key.rfind("prompting/", 0) == 0;
    for (const char* each : known) expected = expected || key == each;
    if (!expected && key.rfind("scaling/", 0) == 0) {
      const std::string update = key.substr(8);
      const size_t slash = update.rfind('/');
      expected = slash != update.npos && package.adapter.updates.count(update.substr(0, slash)) > 0;
    }
    if (!expected) damaged("nothing uses field '" + key + "' of the package");
  }
}

}  // namespace

std::string package_digest(Bytes head, Bytes file) {
  std::string blank(head.text());
  for (const auto& [field, count] : {std::pair<std::string_view, size_t>{"digest", 64}, {"signature", 128}}) {
    const size_t place = digits_of(blank, field, count);
    if (place != std::string::npos) blank.replace(place, count, count, '0');
  }
  Sha256 hashed;
  hashed.update(bytes_of(blank));
  hashed.update(file.part(head.size, file.size - head.size));
  return hashed.hex();
}

Package read_package(Bytes file) {
  const Safetensors stored = read_safetensors(file);
  Package package;
  package.fields = stored.metadata;
  const auto format = package.fields.find("format");
  if (format == package.fields.end() || format->second != kFormat) damaged("the file is no adapter package");
  check_version(package);
  if (package_digest(stored.head, file) != field_of(package, "digest")) {
    damaged("the package is damaged: its bytes are not those of its digest");
  }
  for (const char* each : {"name", "adapter", "plan"}) field_of(package, each);
  package.adapter.foundation = field_of(package, "foundation");
  package.adapter.template_digest = field_of(package, "template");
  read_matrices(stored, package);
  check_fields(package);
  check_ranks(package.adapter);
  return package;
}

}  // namespace lora_core
