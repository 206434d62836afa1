#include "files.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>

namespace lora_core {
namespace {

constexpr size_t kBuffer = 1 << 17;

[[noreturn]] void cannot(const char* doing, const std::string& path) {
  fail(LORA_CORE_IO, std::string("cannot ") + doing + " " + path + ": " + std::strerror(errno));
}

}  // namespace

MappedFile::MappedFile(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) cannot("open", path);
  struct stat status = {};
  if (::fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(descriptor);
    fail(LORA_CORE_IO, path + " is no file");
  }
  size_ = static_cast<size_t>(status.st_size);
  if (size_ > 0) {
    address_ = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (address_ == MAP_FAILED) {
      ::close(descriptor);
      cannot("map", path);
    }
  }
  ::close(descriptor);
}

MappedFile::~MappedFile() {
  if (address_ != nullptr) ::munmap(address_, size_);
}

void Sink::zeros(uint64_t count) {
  static const uint8_t nothing[256] = {};
  for (; count > 0; count -= count < sizeof nothing ? count : sizeof nothing) {
    write({nothing, static_cast<size_t>(count < sizeof nothing ? count : sizeof nothing)});
  }
}

NewFile::NewFile(std::string path) : path_(std::move(path)) {
  static std::atomic<unsigned> count{0};
  unfinished_ = path_ + ".unfinished-" + std::to_string(::getpid()) + "-" + std::to_string(count++);
  buffer_.reserve(kBuffer);
  descriptor_ = ::open(unfinished_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (descriptor_ < 0) cannot("create", unfinished_);
}

NewFile::~NewFile() {
  if (descriptor_ < 0) return;
  ::close(descriptor_);
  ::unlink(unfinished_.c_str());
}

void NewFile::write(Bytes bytes) {
  if (bytes.size > kBuffer - buffer_.size()) flush();
  if (bytes.size >= kBuffer) return write_through(bytes);
  buffer_.insert(buffer_.end(), bytes.data, bytes.data + bytes.size);
}

void NewFile::flush() {
  write_through({buffer_.data(), buffer_.size()});
  buffer_.clear();
}

void NewFile::write_through(Bytes bytes) {
  while (bytes.size > 0) {
    const ssize_t count = ::write(descriptor_, bytes.data, bytes.size);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) cannot("write", unfinished_);
    bytes = bytes.part(static_cast<uint64_t>(count), bytes.size - static_cast<uint64_t>(count));
  }
}

void NewFile::finish() {
  flush();
  const int descriptor = descriptor_;
  descriptor_ = -1;
  if (::close(descriptor) != 0 || std::rename(unfinished_.c_str(), path_.c_str()) != 0) {
    ::unlink(unfinished_.c_str());
    cannot("finish", path_);
  }
}

}  // namespace lora_core
