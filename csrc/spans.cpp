// The layout of a step: blocks, token ids and rows of logits of its spans.
//
// `vllm_dllm/ops/spans.py` holds the contracts and the torch references.

#include "binding.h"

#include <algorithm>
#include <cstdint>

namespace {

void block_of(int64_t num_reqs, const int64_t* slots, const int64_t* known,
              const int64_t* origins, const int64_t* blocks, const int64_t* ends,
              int64_t* start, int64_t* length) {
  for (int64_t i = 0; i < num_reqs; ++i) {
    const int64_t slot = slots[i];
    const int64_t block = blocks[slot];
    const int64_t past = known[i] - origins[slot];
    const int64_t before = past / block - (past % block < 0);
    start[i] = origins[slot] + before * block;
    length[i] = std::min(block, ends[slot] - start[i]);
  }
}

void tokens_of(int64_t num_reqs, const int32_t* query_start_loc, int64_t* query_start,
               int64_t* owner) {
  std::copy(query_start_loc, query_start_loc + num_reqs + 1, query_start);
  for (int64_t i = 0; i < num_reqs; ++i) {
    std::fill(owner + query_start[i], owner + query_start[i + 1], i);
  }
}

void bounds_of(int64_t num_reqs, const int64_t* query_start, const int64_t* position,
               int64_t* starts, int64_t* ends) {
  for (int64_t i = 0; i < num_reqs; ++i) {
    starts[i] = position[query_start[i]];
    ends[i] = starts[i] + query_start[i + 1] - query_start[i];
  }
}

void show_known(int64_t num_tokens, int64_t last, const int64_t* owner,
                const int64_t* position, const int64_t* slots, const int64_t* shown,
                const int32_t* all_token_ids, int64_t all_token_ids_stride,
                int64_t* ids) {
  for (int64_t t = 0; t < num_tokens; ++t) {
    const int64_t i = owner[t];
    if (position[t] >= shown[i]) continue;
    const int64_t column = std::min(position[t], last);
    ids[t] = all_token_ids[slots[i] * all_token_ids_stride + column];
  }
}

void of_rings(int64_t num_tokens, int64_t last, const int64_t* owner,
              const int64_t* position, const int64_t* slots, const int64_t* shown,
              const int64_t* room, const int64_t* blocks, int64_t blocks_stride,
              const int32_t* all_token_ids, int64_t all_token_ids_stride,
              int64_t* ids) {
  for (int64_t t = 0; t < num_tokens; ++t) {
    const int64_t i = owner[t];
    const int64_t slot = slots[i];
    if (position[t] < shown[i]) {
      const int64_t column = std::min(position[t], last);
      ids[t] = all_token_ids[slot * all_token_ids_stride + column];
    } else {
      ids[t] = blocks[slot * blocks_stride + position[t] % room[slot]];
    }
  }
}

void logit_rows(int64_t num_rows, int64_t shift, const int64_t* request,
                const int64_t* position, const int64_t* query_start,
                const int64_t* start, int64_t* rows) {
  for (int64_t k = 0; k < num_rows; ++k) {
    const int64_t i = request[k];
    const int64_t first = query_start[i];
    const int64_t row = first - start[i] - shift + position[k];
    rows[k] = std::min(std::max(row, first), query_start[i + 1] - 1);
  }
}

void block_rows(int64_t num_reqs, int64_t block, const int32_t* query_start_loc,
                const int32_t* seq_lens, int32_t* query_start, int64_t* owner,
                int32_t* row_lens) {
  int64_t row = 0;
  for (int64_t i = 0; i < num_reqs; ++i) {
    const int64_t end = query_start_loc[i + 1];
    for (int64_t begin = query_start_loc[i]; begin < end; begin += block) {
      query_start[row] = static_cast<int32_t>(begin);
      owner[row] = i;
      const int64_t left = std::max<int64_t>(end - begin - block, 0);
      row_lens[row++] = static_cast<int32_t>(seq_lens[i] - left);
    }
  }
  query_start[row] = query_start_loc[num_reqs];
}

}  // namespace

PyMethodDef dllm::spans[] = {
    dllm::method<block_of>("block_of"),
    dllm::method<tokens_of>("tokens_of"),
    dllm::method<bounds_of>("bounds_of"),
    dllm::method<show_known>("show_known"),
    dllm::method<of_rings>("of_rings"),
    dllm::method<logit_rows>("logit_rows"),
    dllm::method<block_rows>("block_rows"),
    {nullptr, nullptr, 0, nullptr},
};
