#include "spfde/workspace.h"

#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>

namespace spfde {
namespace {

struct Block {
  void* data = nullptr;
  size_t bytes = 0;
  ~Block() { std::free(data); }
};

thread_local Block blocks[static_cast<int>(Scratch::count)];

}  // namespace

void* scratch(Scratch slot, size_t bytes) {
  Block& block = blocks[static_cast<int>(slot)];
  if (block.bytes < bytes) {
    constexpr size_t kAlign = 64;
    const size_t grown = (bytes + bytes / 4 + kAlign - 1) / kAlign * kAlign;
    std::free(block.data);
    block.bytes = 0;
    block.data = std::aligned_alloc(kAlign, grown);
    if (block.data == nullptr) throw std::bad_alloc();
    block.bytes = grown;
  }
  return block.data;
}

void refuse_size(const char* op, long long floats) {
  throw std::length_error(std::string("spfde: ") + op +
                          ": expected the padded planes of an image to hold fewer than 2^31 " + "positions, got " +
                          std::to_string(floats) + ", try smaller images or kernel = 'dense'");
}

}  // namespace spfde
