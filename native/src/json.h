// Reads JSON (RFC 8259) from left to right, without building a tree. Throws DAMAGED where the text is not what is asked.
#pragma once

#include <string>
#include <string_view>

#include "bytes.h"

namespace lora_core {

class Json {
 public:
  explicit Json(std::string_view text) : text_(text) {}

  // Calls member(key) for each member; it must read the value.
  template <class Member>
  void object(Member member) {
    open('{');
    for (bool first = true; !closes('}', first); first = false) {
      const std::string key = string();
      expect(':');
      member(key);
    }
    --depth_;
  }

  // Calls element() for each element; it must read it.
  template <class Element>
  void array(Element element) {
    open('[');
    for (bool first = true; !closes(']', first); first = false) element();
    --depth_;
  }

  std::string string();
  uint64_t number();   // a whole number that is not negative
  double decimal();    // any number whose decimal digits a double holds exactly in one operation
  bool boolean();
  bool null();         // reads null if it stands here
  char next();         // the first character of the next value
  void skip();         // reads any value
  void end();          // nothing but white space may follow

 private:
  void open(char bracket);
  bool closes(char bracket, bool first);
  void expect(char wanted);
  void word(std::string_view wanted);
  unsigned escaped();
  [[noreturn]] void wrong() const;

  std::string_view text_;
  size_t at_ = 0;
  int depth_ = 0;
};

}  // namespace lora_core
