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

// Block, column and position of each wanted cell, in three rows of n * width; how many.
int64_t cells(int64_t num_blocks, int64_t width, const uint8_t* wanted,
              const int64_t* start, int64_t* found) {
  const int64_t most = num_blocks * width;
  int64_t count = 0;
  for (int64_t i = 0; i < most; ++i) {
    if (!wanted[i]) continue;
    found[count] = i / width;
    found[most + count] = i % width;
    found[2 * most + count] = start[i / width] + i % width;
    ++count;
  }
  return count;
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

// What leaves one block, from the first column of its canvas to the first mask.
struct Leaves {
  int64_t first_mask;
  int64_t count;
  bool finished;

  Leaves(int64_t width, int64_t first, int64_t length, bool may_leave,
         const int64_t* tokens, const uint8_t* masked, int64_t* leaving) {
    first_mask = std::min(std::find(masked, masked + width, 1) - masked, length);
    count = may_leave ? first_mask - first : 0;
    finished = may_leave && first_mask == length;
    for (int64_t c = 0; c < width; ++c) leaving[c] = tokens[(first + c) % width];
  }
};

void leave(int64_t num_blocks, int64_t width, const int64_t* tokens,
           const uint8_t* masked, const int64_t* first, const int64_t* length,
           const uint8_t* may_leave, int64_t* leaving, int64_t* count,
           uint8_t* finished) {
  for (int64_t i = 0; i < num_blocks; ++i) {
    const int64_t row = i * width;
    const Leaves leaves(width, first[i], length[i], may_leave[i], tokens + row,
                        masked + row, leaving + row);
    count[i] = leaves.count;
    finished[i] = leaves.finished;
  }
}

void hand_out(int64_t num_blocks, int64_t width, int64_t mask_token_id,
              int64_t* tokens_table, int64_t tokens_stride, int64_t* decided_table,
              int64_t decided_stride, int64_t* step_table, int64_t step_stride,
              int64_t* post_table, int64_t post_stride, const int64_t* max_len,
              const int64_t* slots, const int64_t* tokens, const int64_t* decided_at,
              const int64_t* step, const int64_t* post_steps, const uint8_t* masked,
              const int64_t* known, const int64_t* start, const int64_t* length,
              const uint8_t* active, const uint8_t* done, int64_t* leaving,
              int32_t* count, uint8_t* finished) {
  for (int64_t i = 0; i < num_blocks; ++i) {
    const int64_t slot = slots[i];
    const int64_t row = i * width;
    const int64_t first = known[i] - start[i];
    const Leaves leaves(width, first, length[i], active[i] && done[i], tokens + row,
                        masked + row, leaving + row);
    count[i] = static_cast<int32_t>(std::min(leaves.count, max_len[slot] - known[i]));
    finished[i] = leaves.finished;
    for (int64_t c = 0; c < width; ++c) {
      const bool is_mask = masked[row + c] || c < first + leaves.count;
      tokens_table[slot * tokens_stride + c] = is_mask ? mask_token_id : tokens[row + c];
      decided_table[slot * decided_stride + c] = decided_at[row + c];
    }
    step_table[slot * step_stride] = leaves.finished ? 0 : step[i] + active[i];
    post_table[slot * post_stride] = leaves.finished ? 0 : post_steps[i];
  }
}

}  // namespace

PyMethodDef dllm::blocks[] = {
    dllm::method<gather_blocks>("gather_blocks"),
    dllm::method<write_tokens>("write_tokens"),
    dllm::method<cells>("cells"),
    dllm::method<spread>("spread"),
    dllm::method<leave>("leave"),
    dllm::method<hand_out>("hand_out"),
    {nullptr, nullptr, 0, nullptr},
};
