// fastrope's backend of ggml: what a program may ask of it beside ggml's own interface.
#pragma once

#include <cstddef>
#include <cstdint>

/// Of all contexts, since the start of the program.
struct fastrope_ggml_stats {
  int64_t nodes;  ///< GGML_OP_FLASH_ATTN_EXT that ran
  int64_t runs;   ///< planes [n_q, n_kv] of them, one for each stream, whose mask is of runs (mask_plane.hpp)
  int64_t ranges;                       ///< planes whose mask is of ranges
  int64_t dense;                        ///< planes whose mask was added to the logits
  int64_t plans;                        ///< plans made
  int64_t masks;                        ///< planes of masks read, since they were new or had changed
  int64_t refused;                      ///< times that supports_op said no to the operation
  int64_t failed;                       ///< nodes that could not be run: their graph failed
  int64_t exact, polynomial, toeplitz;  ///< heads of prompts, where there is a tolerance, by what they took
  double seconds;                       ///< in graph_compute
};

/// What ggml_backend_reg_get_proc_address(reg, "fastrope_ggml_stats") returns.
typedef struct fastrope_ggml_stats (*fastrope_ggml_stats_t)(void);

/// What it returns for "fastrope_ggml_summary": writes the numbers as text, of heads also the commonest
/// reasons for what they took, as snprintf does. With FASTROPE_GGML_STATS=1 in the environment it is also
/// printed when the program ends.
typedef size_t (*fastrope_ggml_summary_t)(char* text, size_t size);
