// Files: mapped for reading, and written so that they appear whole or not at all.
#pragma once

#include <string>

#include "bytes.h"

namespace lora_core {

class MappedFile {
 public:
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  Bytes bytes() const { return {static_cast<const uint8_t*>(address_), size_}; }

 private:
  void* address_ = nullptr;
  size_t size_ = 0;
};

// Where a linked file goes, piece after piece.
class Sink {
 public:
  virtual ~Sink() = default;
  virtual void write(Bytes bytes) = 0;
  void zeros(uint64_t count);
};

class NewFile : public Sink {
 public:
  explicit NewFile(std::string path);
  ~NewFile() override;  // removes what was not finished
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;
  void write(Bytes bytes) override;
  void finish();  // gives the file its name

 private:
  void flush();
  void write_through(Bytes bytes);
  std::string path_, unfinished_;
  std::vector<uint8_t> buffer_;
  int descriptor_ = -1;
};

}  // namespace lora_core
