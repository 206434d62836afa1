#include "json.h"

namespace lora_core {
namespace {

constexpr int kDeepest = 32;

bool is_digit(char each) { return each >= '0' && each <= '9'; }

void append_utf8(std::string& text, unsigned point) {
  if (point < 0x80) {
    text += static_cast<char>(point);
  } else if (point < 0x800) {
    text += static_cast<char>(0xc0 | point >> 6);
    text += static_cast<char>(0x80 | (point & 0x3f));
  } else if (point < 0x10000) {
    text += static_cast<char>(0xe0 | point >> 12);
    text += static_cast<char>(0x80 | (point >> 6 & 0x3f));
    text += static_cast<char>(0x80 | (point & 0x3f));
  } else {
    text += static_cast<char>(0xf0 | point >> 18);
    text += static_cast<char>(0x80 | (point >> 12 & 0x3f));
    text += static_cast<char>(0x80 | (point >> 6 & 0x3f));
    text += static_cast<char>(0x80 | (point & 0x3f));
  }
}

}  // namespace

void Json::wrong() const { damaged("the JSON is wrong at character " + std::to_string(at_)); }

char Json::next() {
  while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t')) {
    ++at_;
  }
  return at_ < text_.size() ? text_[at_] : '\0';
}

void Json::expect(char wanted) {
  if (next() != wanted || at_ >= text_.size()) wrong();
  ++at_;
}

void Json::open(char bracket) {
  expect(bracket);
  if (++depth_ > kDeepest) wrong();
}

bool Json::closes(char bracket, bool first) {
  if (next() == bracket) {
    ++at_;
    return true;
  }
  if (!first) expect(',');
  return false;
}

unsigned Json::escaped() {
  unsigned value = 0;
  for (int digit = 0; digit < 4; ++digit, ++at_) {
    const char each = at_ < text_.size() ? text_[at_] : '\0';
    if (is_digit(each)) {
      value = value << 4 | static_cast<unsigned>(each - '0');
    } else if ((each >= 'a' && each <= 'f') || (each >= 'A' && each <= 'F')) {
      value = value << 4 | static_cast<unsigned>((each | 0x20) - 'a' + 10);
    } else {
      wrong();
    }
  }
  return value;
}

std::string Json::string() {
  expect('"');
  std::string found;
  while (true) {
    if (at_ >= text_.size() || static_cast<unsigned char>(text_[at_]) < 0x20) wrong();
    const char each = text_[at_++];
    if (each == '"') return found;
    if (each != '\\') {
      found += each;
      continue;
    }
    const char kind = at_ < text_.size() ? text_[at_++] : '\0';
    constexpr std::string_view names = "\"\\/bfnrt", meant = "\"\\/\b\f\n\r\t";
    if (const size_t index = names.find(kind); kind != '\0' && index != std::string_view::npos) {
      found += meant[index];
      continue;
    }
    if (kind != 'u') wrong();
    unsigned point = escaped();
    if (point >= 0xdc00 && point < 0xe000) wrong();
    if (point >= 0xd800 && point < 0xdc00) {
      if (text_.substr(at_, 2) != "\\u") wrong();
      at_ += 2;
      const unsigned low = escaped();
      if (low < 0xdc00 || low >= 0xe000) wrong();
      point = 0x10000 + ((point - 0xd800) << 10) + (low - 0xdc00);
    }
    append_utf8(found, point);
  }
}

uint64_t Json::number() {
  next();
  const size_t start = at_;
  uint64_t value = 0;
  for (; at_ < text_.size() && is_digit(text_[at_]); ++at_) {
    const unsigned digit = static_cast<unsigned>(text_[at_] - '0');
    if (value > (UINT64_MAX - digit) / 10) wrong();
    value = 10 * value + digit;
  }
  const char after = at_ < text_.size() ? text_[at_] : '\0';
  if (at_ == start || (text_[start] == '0' && at_ > start + 1) || after == '.' || after == 'e' || after == 'E') wrong();
  return value;
}

double Json::decimal() {
  const bool negative = next() == '-';
  if (negative) ++at_;
  uint64_t digits = 0;
  int64_t exponent = 0;
  const size_t start = at_;
  bool point = false;
  for (; at_ < text_.size() && (is_digit(text_[at_]) || (text_[at_] == '.' && !point)); ++at_) {
    if (text_[at_] == '.') {
      point = true;
      continue;
    }
    digits = 10 * digits + static_cast<unsigned>(text_[at_] - '0');
    if (digits > uint64_t{1} << 53) fail(LORA_CORE_UNSUPPORTED, "a number of the configuration has too many digits");
    exponent -= point ? 1 : 0;
  }
  if (at_ == start || text_[at_ - 1] == '.' || text_[start] == '.') wrong();
  if (at_ < text_.size() && (text_[at_] == 'e' || text_[at_] == 'E')) {
    ++at_;
    const bool minus = at_ < text_.size() && text_[at_] == '-';
    if (at_ < text_.size() && (text_[at_] == '-' || text_[at_] == '+')) ++at_;
    const size_t first = at_;
    int64_t written = 0;
    for (; at_ < text_.size() && is_digit(text_[at_]) && written < 10000; ++at_) written = 10 * written + text_[at_] - '0';
    if (at_ == first) wrong();
    exponent += minus ? -written : written;
  }
  // Both operands are exact, so the one operation rounds as a correct conversion does (Clinger 1990).
  if (exponent < -22 || exponent > 22) fail(LORA_CORE_UNSUPPORTED, "a number of the configuration is too far from 1");
  double power = 1;
  for (int64_t count = exponent < 0 ? -exponent : exponent; count > 0; --count) power *= 10;
  const double value = exponent < 0 ? static_cast<double>(digits) / power : static_cast<double>(digits) * power;
  return negative ? -value : value;
}

void Json::word(std::string_view wanted) {
  if (text_.substr(at_, wanted.size()) != wanted) wrong();
  at_ += wanted.size();
}

bool Json::boolean() {
  const bool found = next() == 't';
  word(found ? "true" : "false");
  return found;
}

bool Json::null() {
  if (next() != 'n') return false;
  word("null");
  return true;
}

void Json::skip() {
  switch (next()) {
    case '{':
      return object([this](const std::string&) { skip(); });
    case '[':
      return array([this] { skip(); });
    case '"':
      string();
      return;
    case 't':
    case 'f':
      boolean();
      return;
    case 'n':
      word("null");
      return;
    default: {
      const size_t start = at_;
      while (at_ < text_.size() && std::string_view("+-.eE0123456789").find(text_[at_]) != std::string_view::npos) ++at_;
      if (at_ == start) wrong();
    }
  }
}

void Json::end() {
  next();
  if (at_ != text_.size()) wrong();
}

}  // namespace lora_core
