// CPU stand-ins for the Triton kernels vLLM's Model Runner V2 launches each step.
//
// Plain C++ over raw pointers; nothing here knows about torch. Each function does
// what the Triton kernel of the same name does, with the launch grid turned into a
// loop. `vllm_dllm/ops/runner_kernels/fallback.py` holds the Python signatures.
//
// Calls come with 1-16 requests and last microseconds, so they keep the
// GIL: releasing it would cost more than the work, and getting it back may cost a whole
// switch interval.
//
// One deliberate difference: where a kernel would run past the end of a request's
// row (and read or overwrite the next request's), these stop at the row's end.

#include "binding.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace {

// Below these sizes waking the OpenMP threads costs more than they save.
constexpr int64_t kParallelBlockIds = 1 << 18;
constexpr int64_t kParallelTokens = 1 << 15;

template <typename T>
T* row_of(const uint64_t* tables, int64_t group, int64_t row, int64_t stride) {
  return reinterpret_cast<T*>(tables[group]) + row * stride;
}

// One output tensor: `rows` is its data; element_size is 4 or 8 bytes.
void apply_write(int64_t num_writes, int64_t element_size, char* rows,
                 int64_t row_stride, const int32_t* indices, const int32_t* starts,
                 const char* contents, const int32_t* cu_lens) {
  int64_t begin = 0;
  for (int64_t write = 0; write < num_writes; ++write) {
    const int64_t end = cu_lens[write];
    const int64_t target = indices[write] * row_stride + starts[write];
    std::memcpy(rows + target * element_size, contents + begin * element_size,
                (end - begin) * element_size);
    begin = end;
  }
}

// One int32 output tensor per group: `tables` and `strides` are indexed by group.
void apply_write_groups(int64_t num_writes, const uint64_t* tables,
                        const int64_t* strides, const int32_t* indices,
                        const int32_t* starts, const int32_t* contents,
                        const int32_t* cu_lens, const int32_t* group_ids) {
  int64_t begin = 0;
  for (int64_t write = 0; write < num_writes; ++write) {
    const int64_t end = cu_lens[write];
    const int64_t group = group_ids[write];
    int32_t* row = row_of<int32_t>(tables, group, indices[write], strides[group]);
    std::copy(contents + begin, contents + end, row + starts[write]);
    begin = end;
  }
}

void gather_block_tables(int64_t num_groups, int64_t num_reqs,
                         const int64_t* idx_mapping, const uint64_t* sources,
                         const uint64_t* destinations, const int64_t* strides,
                         const int32_t* num_blocks, int64_t num_blocks_stride) {
  for (int64_t group = 0; group < num_groups; ++group) {
    const int64_t stride = strides[group];
#pragma omp parallel for if (num_reqs * stride > kParallelBlockIds)
    for (int64_t req = 0; req < num_reqs; ++req) {
      const int64_t slot = idx_mapping[req];
      const int32_t* source = row_of<const int32_t>(sources, group, slot, stride);
      std::copy_n(source, num_blocks[group * num_blocks_stride + slot],
                  row_of<int32_t>(destinations, group, req, stride));
    }
  }
}

void compute_slot_mappings(int64_t num_groups, int64_t num_reqs,
                           int64_t max_num_tokens, const int64_t* idx_mapping,
                           const int32_t* query_start_loc, const int64_t* positions,
                           const uint64_t* tables, const int64_t* strides,
                           const int32_t* block_sizes, const uint8_t* enabled,
                           int64_t* slot_mappings, int64_t slot_mappings_stride,
                           int64_t pad_id) {
  const int64_t num_tokens = query_start_loc[num_reqs];
  for (int64_t group = 0; group < num_groups; ++group) {
    int64_t* slots = slot_mappings + group * slot_mappings_stride;
    const int64_t block_size = block_sizes[group];
    const int64_t width = strides[group];
#pragma omp parallel for if (num_tokens > kParallelTokens)
    for (int64_t req = 0; req < num_reqs; ++req) {
      const int64_t begin = query_start_loc[req];
      const int64_t end = query_start_loc[req + 1];
      const int64_t slot = idx_mapping[req];
      if (slot < 0 || !enabled[group]) {
        std::fill(slots + begin, slots + end, pad_id);
        continue;
      }
      const int32_t* row = row_of<const int32_t>(tables, group, slot, width);
      for (int64_t token = begin; token < end; ++token) {
        const int64_t block = positions[token] / block_size;
        const int64_t offset = positions[token] % block_size;
        slots[token] = block < width ? row[block] * block_size + offset : pad_id;
      }
    }
    std::fill(slots + num_tokens, slots + std::max(num_tokens, max_num_tokens),
              pad_id);
  }
}

void prepare_prefill_inputs(int64_t num_reqs, int32_t* input_ids,
                            int32_t* next_prefill_tokens,
                            int64_t next_prefill_tokens_stride,
                            int64_t num_lookahead, const int64_t* idx_mapping,
                            const int32_t* query_start_loc,
                            const int32_t* all_token_ids,
                            int64_t all_token_ids_stride,
                            const int32_t* prefill_lens,
                            const int32_t* num_computed_tokens) {
  for (int64_t req = 0; req < num_reqs; ++req) {
    const int64_t slot = idx_mapping[req];
    const int64_t prefill_len = prefill_lens[slot];
    const int64_t num_computed = num_computed_tokens[slot];
    if (num_computed >= prefill_len) continue;

    const int64_t begin = query_start_loc[req];
    const int64_t query_len = query_start_loc[req + 1] - begin;
    const int32_t* row = all_token_ids + slot * all_token_ids_stride;
    const int64_t known = std::min(query_len, all_token_ids_stride - num_computed);
    std::copy_n(row + num_computed, known, input_ids + begin);

    for (int64_t ahead = 0; ahead < num_lookahead; ++ahead) {
      const int64_t position = num_computed + query_len + ahead;
      next_prefill_tokens[ahead * next_prefill_tokens_stride + slot] =
          position < prefill_len ? row[position] : 0;
    }
  }
}

void prepare_pos_seq_lens(int64_t num_reqs, int64_t* positions, int32_t* seq_lens,
                          const int64_t* idx_mapping, const int32_t* query_start_loc,
                          const int32_t* num_computed_tokens, int64_t max_num_reqs) {
  for (int64_t req = 0; req < num_reqs; ++req) {
    const int64_t begin = query_start_loc[req];
    const int64_t query_len = query_start_loc[req + 1] - begin;
    const int64_t num_computed = num_computed_tokens[idx_mapping[req]];
    seq_lens[req] = static_cast<int32_t>(num_computed + query_len);
    for (int64_t i = 0; i < query_len; ++i) positions[begin + i] = num_computed + i;
  }
  std::fill(seq_lens + num_reqs, seq_lens + std::max(num_reqs, max_num_reqs), 0);
}

void combine_sampled_and_draft_tokens(
    int64_t num_reqs, int32_t* input_ids, const int64_t* idx_mapping,
    const int64_t* last_sampled_tokens, const int32_t* query_start_loc,
    const int32_t* seq_lens, const int32_t* prefill_lens,
    const int64_t* draft_tokens, int64_t draft_tokens_stride,
    const int32_t* cu_num_logits, int64_t* logits_indices,
    int64_t num_new_sampled_tokens) {
  for (int64_t req = 0; req < num_reqs; ++req) {
    const int64_t slot = idx_mapping[req];
    const int64_t first_logit = cu_num_logits[req];
    const int64_t num_logits = cu_num_logits[req + 1] - first_logit;
    const int64_t num_drafts = num_logits - num_new_sampled_tokens;
    const int64_t query_end = query_start_loc[req + 1];
    const int64_t logits_start = query_end - num_logits;
    for (int64_t i = 0; i < num_logits; ++i) {
      logits_indices[first_logit + i] = logits_start + i;
    }

    const int64_t seq_len = seq_lens[req];
    const int64_t prefill_len = prefill_lens[slot];
    if (seq_len <= prefill_len) continue;  // Prompt tokens only.

    // A logits row that still belongs to the prompt keeps its prompt token.
    if (num_new_sampled_tokens > 0 && seq_len - num_logits >= prefill_len) {
      input_ids[logits_start] = static_cast<int32_t>(last_sampled_tokens[slot]);
    }
    const int64_t* drafts = draft_tokens + slot * draft_tokens_stride;
    for (int64_t i = 0; i < num_drafts; ++i) {
      input_ids[query_end - num_drafts + i] = static_cast<int32_t>(drafts[i]);
    }
  }
}

// output_bin_counts and query_start_loc may be null.
void post_update(int64_t num_reqs, const int64_t* idx_mapping,
                 int32_t* num_computed_tokens, int64_t* last_sampled_tokens,
                 int32_t* output_bin_counts, int64_t output_bin_counts_stride,
                 const int64_t* sampled_tokens, int64_t sampled_tokens_stride,
                 const int32_t* num_sampled, const int32_t* num_rejected,
                 const int32_t* query_start_loc, int32_t* all_token_ids,
                 int64_t all_token_ids_stride, int32_t* total_lens) {
  for (int64_t req = 0; req < num_reqs; ++req) {
    const int64_t slot = idx_mapping[req];
    if (slot < 0) continue;

    const int64_t total_len = total_lens[slot];
    const int64_t count = num_sampled[req];
    const int64_t* tokens = sampled_tokens + req * sampled_tokens_stride;
    int32_t* row = all_token_ids + slot * all_token_ids_stride;
    if (count > 0) {
      last_sampled_tokens[slot] = tokens[count - 1];
      total_lens[slot] = static_cast<int32_t>(total_len + count);
    }
    for (int64_t i = 0; i < count; ++i) {
      if (total_len + i < all_token_ids_stride) {
        row[total_len + i] = static_cast<int32_t>(tokens[i]);
      }
      if (output_bin_counts != nullptr) {
        output_bin_counts[slot * output_bin_counts_stride + tokens[i]] += 1;
      }
    }
    const int32_t query_len =
        query_start_loc ? query_start_loc[req + 1] - query_start_loc[req] : 0;
    num_computed_tokens[slot] += query_len - num_rejected[req];
  }
}

void post_update_num_computed_tokens(int64_t num_reqs, const int64_t* idx_mapping,
                                     int32_t* num_computed_tokens,
                                     const int32_t* query_start_loc) {
  for (int64_t req = 0; req < num_reqs; ++req) {
    num_computed_tokens[idx_mapping[req]] +=
        query_start_loc[req + 1] - query_start_loc[req];
  }
}

void expand_idx_mapping(int64_t num_reqs, const int64_t* idx_mapping,
                        int64_t* expanded_idx_mapping, int32_t* expanded_local_pos,
                        const int32_t* cu_num_logits) {
  for (int64_t req = 0; req < num_reqs; ++req) {
    const int32_t begin = cu_num_logits[req];
    for (int32_t row = begin; row < cu_num_logits[req + 1]; ++row) {
      expanded_idx_mapping[row] = idx_mapping[req];
      expanded_local_pos[row] = row - begin;
    }
  }
}

}  // namespace

PyMethodDef dllm::runner_kernels[] = {
    dllm::method<apply_write>("apply_write"),
    dllm::method<apply_write_groups>("apply_write_groups"),
    dllm::method<gather_block_tables>("gather_block_tables"),
    dllm::method<compute_slot_mappings>("compute_slot_mappings"),
    dllm::method<prepare_prefill_inputs>("prepare_prefill_inputs"),
    dllm::method<prepare_pos_seq_lens>("prepare_pos_seq_lens"),
    dllm::method<combine_sampled_and_draft_tokens>("combine_sampled_and_draft_tokens"),
    dllm::method<post_update>("post_update"),
    dllm::method<post_update_num_computed_tokens>("post_update_num_computed_tokens"),
    dllm::method<expand_idx_mapping>("expand_idx_mapping"),
    {nullptr, nullptr, 0, nullptr},
};
