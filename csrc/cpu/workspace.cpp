#include "cpu/workspace.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

namespace spfde::cpu {
namespace {

constexpr size_t kAlign = 64;
size_t round_up(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

struct Free {
  void operator()(void* data) const { std::free(data); }
};
struct Block {
  std::unique_ptr<void, Free> data;
  size_t size;
};

// Blocks are filled one after another. A call that needed several leaves its total behind, so that the next one finds
// a single block large enough.
struct Arena {
  std::vector<Block> blocks;
  size_t block = 0, used = 0;  // taken: all blocks before `block`, and so many bytes of that one
  size_t taken = 0, peak = 0;  // bytes, now and at most
  int scopes = 0;
};
thread_local Arena arena;

Block allocate(size_t size) { return {std::unique_ptr<void, Free>(std::aligned_alloc(kAlign, size)), size}; }

void add_block(Arena& a, size_t size) {
  a.blocks.resize(a.taken == 0 ? 0 : a.block + 1);  // the rest is in nobody's use
  Block block = allocate(std::max(size, a.taken == 0 ? round_up(a.peak + a.peak / 4) : 0));
  if (block.data == nullptr) block = allocate(size);
  if (block.data == nullptr) throw std::bad_alloc();
  a.blocks.push_back(std::move(block));
  a.block = a.blocks.size() - 1;
  a.used = 0;
}

}  // namespace

Scratch::Scratch() : block_(arena.block), used_(arena.used), taken_(arena.taken) { ++arena.scopes; }

Scratch::~Scratch() {
  Arena& a = arena;
  a.block = block_;
  a.used = used_;
  a.taken = taken_;
  if (--a.scopes == 0 && a.blocks.size() > 1) a.blocks.clear();
}

void* Scratch::bytes(size_t size) {
  Arena& a = arena;
  size = round_up(std::max<size_t>(size, 1));
  if (a.block >= a.blocks.size() || a.used + size > a.blocks[a.block].size) {
    if (a.block + 1 < a.blocks.size() && size <= a.blocks[a.block + 1].size) {
      ++a.block;
      a.used = 0;
    } else {
      add_block(a, size);
    }
  }
  void* data = static_cast<char*>(a.blocks[a.block].data.get()) + a.used;
  a.used += size;
  a.taken += size;
  a.peak = std::max(a.peak, a.taken);
  return data;
}

}  // namespace spfde::cpu
