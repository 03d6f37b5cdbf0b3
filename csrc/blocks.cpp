// The blocks under denoising of a step: out of their slots, decided, and back.
//
// `vllm_dllm/ops/blocks.py` holds the contracts and the torch references. Of tables
// [num_slots, columns] the row stride is given; [n, width] tensors are contiguous.

#include "binding.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace {

void gather_blocks(int64_t num_blocks, int64_t width, int64_t mask_token_id,
                   const int64_t* tokens_table, int64_t tokens_stride,
                   const int64_t* decided_table, int64_t decided_stride,
                   const int64_t* step_table, int64_t step_stride,
                   const int64_t* post_table, int64_t post_stride,
                   const int64_t* slots, const int64_t* known, const int64_t* start,
                   const int64_t* length, const uint8_t* active, int64_t* tokens,
                   int64_t* decided_at, int64_t* step, int64_t* post_steps,
                   uint8_t* masked, uint8_t* editable) {
  for (int64_t i = 0; i < num_blocks; ++i) {
    const int64_t slot = slots[i];
    const int64_t first = known[i] - start[i];
    const int64_t row = i * width;
    bool has_mask = false;
    for (int64_t c = 0; c < width; ++c) {
      const int64_t token = tokens_table[slot * tokens_stride + c];
      const bool in_canvas = active[i] && c >= first && c < length[i];
      const bool is_mask = token == mask_token_id;
      tokens[row + c] = token;
      decided_at[row + c] = decided_table[slot * decided_stride + c];
      masked[row + c] = in_canvas && is_mask;
      editable[row + c] = in_canvas && !is_mask;
      has_mask |= in_canvas && is_mask;
    }
    step[i] = step_table[slot * step_stride];
    post_steps[i] = post_table[slot * post_stride] + (active[i] && !has_mask);
  }
}

void write_tokens(int64_t num_blocks, int64_t width, const uint8_t* where,
                  const int64_t* candidate, const int64_t* step, int64_t* tokens,
                  uint8_t* masked, int64_t* decided_at) {
  for (int64_t i = 0; i < num_blocks * width; ++i) {
    if (!where[i]) continue;
    tokens[i] = candidate[i];
    masked[i] = 0;
    decided_at[i] = step[i / width];
  }
}

// Values of 4 or 8 bytes to their cells of a grid of zeros.
void spread(int64_t num_blocks, int64_t width, int64_t num_rows, int64_t element_size,
            const int64_t* block, const int64_t* column, const char* values,
            char* grid) {
  std::memset(grid, 0, num_blocks * width * element_size);
  for (int64_t row = 0; row < num_rows; ++row) {
    const int64_t cell = block[row] * width + column[row];
    std::memcpy(grid + cell * element_size, values + row * element_size, element_size);
  }
}

// room may be null.
void leave(int64_t num_blocks, int64_t width, const int64_t* tokens,
           const uint8_t* masked, const int64_t* first, const int64_t* length,
           const uint8_t* may_leave, const int64_t* room, int64_t* leaving,
           int64_t* count, int64_t* left, uint8_t* finished) {
  for (int64_t i = 0; i < num_blocks; ++i) {
    const int64_t row = i * width;
    const uint8_t* mask = masked + row;
    const int64_t end = std::find(mask, mask + width, 1) - mask;
    const int64_t first_mask = std::min(end, length[i]);
    const int64_t leaves = may_leave[i] ? first_mask - first[i] : 0;
    for (int64_t c = 0; c < width; ++c) {
      leaving[row + c] = tokens[row + (first[i] + c) % width];
    }
    count[i] = room ? std::min(leaves, room[i]) : leaves;
    left[i] = first[i] + leaves;
    finished[i] = may_leave[i] && first_mask == length[i];
  }
}

void store_blocks(int64_t num_blocks, int64_t width, int64_t mask_token_id,
                  int64_t* tokens_table, int64_t tokens_stride, int64_t* decided_table,
                  int64_t decided_stride, int64_t* step_table, int64_t step_stride,
                  int64_t* post_table, int64_t post_stride, const int64_t* slots,
                  const int64_t* tokens, const int64_t* decided_at,
                  const int64_t* step, const int64_t* post_steps,
                  const uint8_t* masked, const uint8_t* taken, const int64_t* left,
                  const uint8_t* finished) {
  for (int64_t i = 0; i < num_blocks; ++i) {
    const int64_t slot = slots[i];
    const int64_t row = i * width;
    for (int64_t c = 0; c < width; ++c) {
      const bool is_mask = masked[row + c] || c < left[i];
      tokens_table[slot * tokens_stride + c] = is_mask ? mask_token_id : tokens[row + c];
      decided_table[slot * decided_stride + c] = decided_at[row + c];
    }
    step_table[slot * step_stride] = finished[i] ? 0 : step[i] + taken[i];
    post_table[slot * post_stride] = finished[i] ? 0 : post_steps[i];
  }
}

}  // namespace

PyMethodDef dllm::blocks[] = {
    dllm::method<gather_blocks>("gather_blocks"),
    dllm::method<write_tokens>("write_tokens"),
    dllm::method<leave>("leave"),
    dllm::method<spread>("spread"),
    dllm::method<store_blocks>("store_blocks"),
    {nullptr, nullptr, 0, nullptr},
};
