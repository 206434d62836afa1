#include <memory>
#include <new>

#include "link.h"
#include "lora_core_link.h"
#include "sha256.h"

using namespace lora_core;

struct lora_core_template {
  lora_core_template(const char* program_path, const char* table_path)
      : program(program_path), table(table_path), found(read_template(program.bytes(), table.bytes())) {}
  MappedFile program, table;
  Template found;
};

namespace {

void tell(lora_core_error* error, const char* message) {
  if (error == nullptr) return;
  size_t index = 0;
  for (; message[index] != '\0' && index + 1 < sizeof error->message; ++index) {
    const char each = message[index];
    error->message[index] = static_cast<unsigned char>(each) < 0x20 ? ' ' : each;
  }
  error->message[index] = '\0';
}

// Runs `work`; no exception leaves it.
template <class Work>
lora_core_status guarded(lora_core_error* error, Work work) {
  tell(error, "");
  try {
    work();
    return LORA_CORE_OK;
  } catch (const Failure& failure) {
    tell(error, failure.message.c_str());
    return failure.status;
  } catch (const std::bad_alloc&) {
    tell(error, "there is not enough memory");
  } catch (const std::exception& unexpected) {
    tell(error, unexpected.what());
  } catch (...) {
    tell(error, "something unexpected was thrown");
  }
  return LORA_CORE_MEMORY;
}

void link_files(const lora_core_template& opened, const std::string& name, const Adapter& adapter, double strength,
                const char* program, const char* data) {
  std::unique_ptr<NewFile> data_file = data == nullptr ? nullptr : std::make_unique<NewFile>(data);
  NewFile program_file(program);
  link(opened.found, name, adapter, strength, program_file, data_file.get());
  if (data_file) data_file->finish();
  program_file.finish();
}

std::string given(const char* name) { return name == nullptr ? "" : name; }

std::string name_of(const Package& package, const char* name) {
  return name == nullptr ? package.fields.at("name") : name;
}

// The program with an adapter added. The current one stays mapped while the other takes its place.
void add_to_program(const lora_core_template& opened, const char* current, const std::string& name, const Adapter& adapter,
                    double strength, const char* program) {
  const MappedFile old(current);
  const Program parsed = read_program(old.bytes());
  NewFile file(program);
  link_into(opened.found, parsed, name, adapter, strength, file);
  file.finish();
}

}  // namespace

lora_core_status lora_core_template_open(const char* program, const char* table, lora_core_template** opened,
                                         lora_core_error* error) {
  *opened = nullptr;
  return guarded(error, [&] { *opened = new lora_core_template(program, table); });
}

void lora_core_template_close(lora_core_template* opened) { delete opened; }

const char* lora_core_template_foundation(const lora_core_template* opened) { return opened->found.foundation.c_str(); }

lora_core_status lora_core_foundation_check(const lora_core_template* opened, const char* path, lora_core_error* error) {
  return guarded(error, [&] {
    const MappedFile file(path);
    const std::string found = sha256(file.bytes());
    if (found != opened->found.foundation) {
      fail(LORA_CORE_FOREIGN, "the foundation is " + found + ", the template's is " + opened->found.foundation);
    }
  });
}

lora_core_status lora_core_link_package(const lora_core_template* opened, const char* package, const char* name,
                                        double strength, const char* program, const char* data, lora_core_error* error) {
  return guarded(error, [&] {
    const MappedFile file(package);
    const Package read = read_package(file.bytes());
    link_files(*opened, name_of(read, name), read.adapter, strength, program, data);
  });
}

lora_core_status lora_core_link_peft(const lora_core_template* opened, const char* weights, const char* config,
                                     const char* name, double strength, const char* program, const char* data,
                                     lora_core_error* error) {
  return guarded(error, [&] {
    const MappedFile file(weights), settings(config);
    link_files(*opened, given(name), read_peft(file.bytes(), settings.bytes()), strength, program, data);
  });
}

lora_core_status lora_core_add_package(const lora_core_template* opened, const char* current, const char* package,
                                       const char* name, double strength, const char* program, lora_core_error* error) {
  return guarded(error, [&] {
    const MappedFile file(package);
    const Package read = read_package(file.bytes());
    add_to_program(*opened, current, name_of(read, name), read.adapter, strength, program);
  });
}

lora_core_status lora_core_add_peft(const lora_core_template* opened, const char* current, const char* weights,
                                    const char* config, const char* name, double strength, const char* program,
                                    lora_core_error* error) {
  return guarded(error, [&] {
    const MappedFile file(weights), settings(config);
    add_to_program(*opened, current, given(name), read_peft(file.bytes(), settings.bytes()), strength, program);
  });
}

lora_core_status lora_core_remove_adapter(const lora_core_template* opened, const char* current, const char* name,
                                          const char* program, lora_core_error* error) {
  return guarded(error, [&] {
    const MappedFile old(current);
    const Program parsed = read_program(old.bytes());
    NewFile file(program);
    unlink_from(opened->found, parsed, given(name), file);
    file.finish();
  });
}

lora_core_status lora_core_package_field(const char* package, const char* field, char* buffer, size_t size,
                                         size_t* needed, lora_core_error* error) {
  if (buffer != nullptr && size > 0) buffer[0] = '\0';
  if (needed != nullptr) *needed = 0;
  return guarded(error, [&] {
    const MappedFile file(package);
    const Package read = read_package(file.bytes());
    const auto found = read.fields.find(field);
    if (found == read.fields.end()) return;
    if (needed != nullptr) *needed = found->second.size() + 1;
    if (buffer != nullptr && found->second.size() < size) std::memcpy(buffer, found->second.c_str(), found->second.size() + 1);
  });
}
