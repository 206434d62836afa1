#include "sha256.h"

#include <algorithm>

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#include <immintrin.h>
#define LORA_CORE_SHA_X86 1
#elif defined(__aarch64__) && defined(__linux__) && defined(__GNUC__)
#include <arm_neon.h>
#include <sys/auxv.h>
#define LORA_CORE_SHA_ARM 1
#elif defined(__aarch64__) && defined(__APPLE__)
#include <arm_neon.h>
#define LORA_CORE_SHA_ARM 1
#endif

// Without it the four words of the schedule, chosen by number, go through memory.
#if defined(__clang__)
#define LORA_CORE_UNROLL _Pragma("unroll")
#elif defined(__GNUC__)
#define LORA_CORE_UNROLL _Pragma("GCC unroll 16")
#else
#define LORA_CORE_UNROLL
#endif

namespace lora_core {
namespace {

alignas(16) constexpr uint32_t kRound[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

uint32_t rotated(uint32_t value, int by) { return value >> by | value << (32 - by); }

uint32_t word_at(const uint8_t* place) {
  return uint32_t{place[0]} << 24 | uint32_t{place[1]} << 16 | uint32_t{place[2]} << 8 | place[3];
}

#ifdef LORA_CORE_SHA_X86
__attribute__((target("sha,sse4.1,ssse3"))) void x86_compress(uint32_t* state, const uint8_t* blocks, size_t count) {
  // The instructions hold the state as ABEF and CDGH, high words first (Intel SDM, SHA256RNDS2).
  const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0bLL, 0x0405060700010203LL);
  __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(state));
  __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(state + 4));
  low = _mm_shuffle_epi32(low, 0xb1);
  high = _mm_shuffle_epi32(high, 0x1b);
  __m128i abef = _mm_alignr_epi8(low, high, 8);
  __m128i cdgh = _mm_blend_epi16(high, low, 0xf0);
  for (; count > 0; --count, blocks += 64) {
    const __m128i abef_before = abef, cdgh_before = cdgh;
    __m128i words[4];
    LORA_CORE_UNROLL
    for (int index = 0; index < 4; ++index) {
      words[index] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(blocks + 16 * index));
      words[index] = _mm_shuffle_epi8(words[index], swap);
    }
    LORA_CORE_UNROLL
    for (int step = 0; step < 16; ++step) {
      const __m128i current = words[step & 3];
      __m128i mixed = _mm_add_epi32(current, _mm_load_si128(reinterpret_cast<const __m128i*>(kRound + 4 * step)));
      cdgh = _mm_sha256rnds2_epu32(cdgh, abef, mixed);
      abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(mixed, 0x0e));
      if (step < 12) {
        const __m128i next = words[(step + 1) & 3], after = words[(step + 2) & 3], last = words[(step + 3) & 3];
        __m128i made = _mm_sha256msg1_epu32(current, next);
        made = _mm_add_epi32(made, _mm_alignr_epi8(last, after, 4));
        words[step & 3] = _mm_sha256msg2_epu32(made, last);
      }
    }
    abef = _mm_add_epi32(abef, abef_before);
    cdgh = _mm_add_epi32(cdgh, cdgh_before);
  }
  low = _mm_shuffle_epi32(abef, 0x1b);
  high = _mm_shuffle_epi32(cdgh, 0xb1);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(state), _mm_blend_epi16(low, high, 0xf0));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(state + 4), _mm_alignr_epi8(high, low, 8));
}

bool x86_has_sha() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c >> 9 & 1) || !(c >> 19 & 1)) return false;  // SSSE3, SSE4.1
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b >> 29 & 1);
}
#endif

#ifdef LORA_CORE_SHA_ARM
__attribute__((target("+crypto"))) void arm_compress(uint32_t* state, const uint8_t* blocks, size_t count) {
  uint32x4_t abcd = vld1q_u32(state), efgh = vld1q_u32(state + 4);
  for (; count > 0; --count, blocks += 64) {
    const uint32x4_t abcd_before = abcd, efgh_before = efgh;
    uint32x4_t words[4];
    LORA_CORE_UNROLL
    for (int index = 0; index < 4; ++index) {
      words[index] = vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(blocks + 16 * index)));
    }
    LORA_CORE_UNROLL
    for (int step = 0; step < 16; ++step) {
      const uint32x4_t current = words[step & 3];
      const uint32x4_t mixed = vaddq_u32(current, vld1q_u32(kRound + 4 * step));
      const uint32x4_t kept = abcd;
      abcd = vsha256hq_u32(abcd, efgh, mixed);
      efgh = vsha256h2q_u32(efgh, kept, mixed);
      if (step < 12) {
        const uint32x4_t next = words[(step + 1) & 3], after = words[(step + 2) & 3], last = words[(step + 3) & 3];
        words[step & 3] = vsha256su1q_u32(vsha256su0q_u32(current, next), after, last);
      }
    }
    abcd = vaddq_u32(abcd, abcd_before);
    efgh = vaddq_u32(efgh, efgh_before);
  }
  vst1q_u32(state, abcd);
  vst1q_u32(state + 4, efgh);
}

bool arm_has_sha() {
#if defined(__APPLE__)
  return true;  // every 64-bit Apple processor
#else
  return getauxval(AT_HWCAP) >> 6 & 1;  // HWCAP_SHA2
#endif
}
#endif

}  // namespace

void portable_compress(uint32_t* state, const uint8_t* blocks, size_t count) {
  for (; count > 0; --count, blocks += 64) {
    uint32_t w[64];
    for (int index = 0; index < 16; ++index) w[index] = word_at(blocks + 4 * index);
    for (int index = 16; index < 64; ++index) {
      const uint32_t far = w[index - 15], near = w[index - 2];
      const uint32_t s0 = rotated(far, 7) ^ rotated(far, 18) ^ far >> 3;
      const uint32_t s1 = rotated(near, 17) ^ rotated(near, 19) ^ near >> 10;
      w[index] = w[index - 16] + s0 + w[index - 7] + s1;
    }
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
    for (int index = 0; index < 64; ++index) {
      const uint32_t s1 = rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25);
      const uint32_t first = h + s1 + ((e & f) ^ (~e & g)) + kRound[index] + w[index];
      const uint32_t s0 = rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22);
      const uint32_t second = s0 + ((a & b) ^ (a & c) ^ (b & c));
      h = g, g = f, f = e, e = d + first, d = c, c = b, b = a, a = first + second;
    }
    state[0] += a, state[1] += b, state[2] += c, state[3] += d;
    state[4] += e, state[5] += f, state[6] += g, state[7] += h;
  }
}

Compress fastest_compress() {
#if defined(LORA_CORE_SHA_X86)
  if (x86_has_sha()) return x86_compress;
#elif defined(LORA_CORE_SHA_ARM)
  if (arm_has_sha()) return arm_compress;
#endif
  return portable_compress;
}

void Sha256::update(Bytes bytes) {
  static const Compress compress = fastest_compress();
  length_ += bytes.size;
  if (filled_ > 0) {
    const size_t taken = std::min(bytes.size, block_.size() - filled_);
    if (taken > 0) std::memcpy(block_.data() + filled_, bytes.data, taken);
    filled_ += taken;
    bytes = bytes.part(taken, bytes.size - taken);
    if (filled_ < block_.size()) return;
    compress(state_.data(), block_.data(), 1);
    filled_ = 0;
  }
  const size_t whole = bytes.size / 64;
  if (whole > 0) compress(state_.data(), bytes.data, whole);
  filled_ = bytes.size - 64 * whole;
  if (filled_ > 0) std::memcpy(block_.data(), bytes.data + 64 * whole, filled_);
}

std::string Sha256::hex() {
  const uint64_t bits = 8 * length_;
  uint8_t ending[72] = {0x80};
  const size_t padding = 1 + (119 - length_ % 64) % 64;
  for (size_t index = 0; index < 8; ++index) ending[padding + index] = static_cast<uint8_t>(bits >> (56 - 8 * index));
  update({ending, padding + 8});
  std::string text;
  for (const uint32_t word : state_) {
    for (int shift = 28; shift >= 0; shift -= 4) text += "0123456789abcdef"[word >> shift & 15];
  }
  return text;
}

std::string sha256(Bytes bytes) {
  Sha256 hashed;
  hashed.update(bytes);
  return hashed.hex();
}

}  // namespace lora_core
