// Models as GGUF files, for compare.cpp.
//
//     make_gguf llama2c checkpoint.bin tokenizer.bin out.gguf   a checkpoint of llama2.c with its tokenizer
//     make_gguf random d type out.gguf   llama with random weights of q4_0 or q8_0: 4 layers, 16 heads on 8
//                                        (d = 64) or 8 on 2 (128)
//     make_gguf window out.gguf          gemma2 with random weights of F32: windows of 256 in every other
//                                        layer, softcap
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "ggml.h"
#include "gguf.h"

namespace {

struct Shape {
  std::string architecture = "llama";
  int64_t dim, hidden, layers, heads, kv_heads, d, vocabulary, context;
};

[[noreturn]] void fail(const std::string& message) {
  std::fprintf(stderr, "make_gguf: %s\n", message.c_str());
  std::exit(1);
}

/// A file in the making: keys, then tensors [cols, rows], whose memory is kept until it is written.
class File {
 public:
  explicit File(const Shape& shape)
      : gguf_(gguf_init_empty()),
        context_(ggml_init({size_t{1} << 20, nullptr, true})),
        architecture_(shape.architecture) {
    gguf_set_val_str(gguf_, "general.architecture", architecture_.c_str());
    set("context_length", shape.context);
    set("embedding_length", shape.dim);
    set("block_count", shape.layers);
    set("feed_forward_length", shape.hidden);
    set("attention.head_count", shape.heads);
    set("attention.head_count_kv", shape.kv_heads);
    set("attention.key_length", shape.d);
    set("attention.value_length", shape.d);
    set("rope.dimension_count", shape.d);
    set("vocab_size", shape.vocabulary);
    set("attention.layer_norm_rms_epsilon", 1e-5f);
  }
  ~File() {
    gguf_free(gguf_);
    ggml_free(context_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  void set(const char* key, int64_t value) {
    gguf_set_val_u32(gguf_, name(key).c_str(), static_cast<uint32_t>(value));
  }
  void set(const char* key, float value) { gguf_set_val_f32(gguf_, name(key).c_str(), value); }
  gguf_context* gguf() { return gguf_; }

  /// rows = 0: a vector.
  void add(const std::string& tensor, ggml_type type, const float* values, int64_t cols, int64_t rows = 0) {
    ggml_tensor* x =
        rows == 0 ? ggml_new_tensor_1d(context_, type, cols) : ggml_new_tensor_2d(context_, type, cols, rows);
    ggml_set_name(x, tensor.c_str());
    data_.emplace_back(ggml_nbytes(x));
    x->data = data_.back().data();
    if (type == GGML_TYPE_F32)
      std::memcpy(x->data, values, ggml_nbytes(x));
    else
      ggml_quantize_chunk(type, values, x->data, 0, std::max<int64_t>(rows, 1), cols, nullptr);
    gguf_add_tensor(gguf_, x);
  }
  void write(const char* path) {
    if (!gguf_write_to_file(gguf_, path, false)) fail(std::string("cannot write ") + path);
  }

 private:
  std::string name(const char* key) const { return architecture_ + "." + key; }

  gguf_context* gguf_;
  ggml_context* context_;
  std::string architecture_;
  std::vector<std::vector<char>> data_ = {};
};

std::string of_layer(int64_t layer, const char* tensor) {
  return "blk." + std::to_string(layer) + "." + tensor + ".weight";
}

struct CloseFile {
  void operator()(std::FILE* file) const { std::fclose(file); }
};
using Input = std::unique_ptr<std::FILE, CloseFile>;

Input open(const char* path) {
  Input file(std::fopen(path, "rb"));
  if (!file) fail(std::string("cannot read ") + path);
  return file;
}
template <class T>
void read(std::FILE* file, T* to, size_t count) {
  if (std::fread(to, sizeof(T), count, file) != count) fail("a file is shorter than its header says");
}

/// The tokens of llama2.c's tokenizer as llama.cpp's of the SentencePiece kind: spaces are written as U+2581.
void add_tokenizer(File& file, const char* path, int64_t vocabulary) {
  const Input input = open(path);
  int32_t longest = 0;
  read(input.get(), &longest, 1);
  std::vector<std::string> tokens;
  std::vector<float> scores;
  std::vector<int32_t> types;
  for (int64_t t = 0; t < vocabulary; ++t) {
    float score = 0;
    int32_t length = 0;
    read(input.get(), &score, 1);
    read(input.get(), &length, 1);
    if (length < 0 || length > longest) fail("a token is longer than the tokenizer's header says");
    std::string token(static_cast<size_t>(length), '\0');
    read(input.get(), token.data(), token.size());
    enum { normal = 1, unknown = 2, control = 3, byte = 6 };
    const int32_t type = t == 0 ? unknown : t < 3 ? control : t < 259 ? byte : normal;
    if (t < 3) token = t == 0 ? "<unk>" : t == 1 ? "<s>" : "</s>";
    std::string written;
    for (const char c : token) written += c == ' ' ? std::string("\xe2\x96\x81") : std::string(1, c);
    tokens.push_back(written);
    scores.push_back(score);
    types.push_back(type);
  }
  std::vector<const char*> names;
  for (const std::string& token : tokens) names.push_back(token.c_str());
  gguf_set_val_str(file.gguf(), "tokenizer.ggml.model", "llama");
  gguf_set_arr_str(file.gguf(), "tokenizer.ggml.tokens", names.data(), names.size());
  gguf_set_arr_data(file.gguf(), "tokenizer.ggml.scores", GGUF_TYPE_FLOAT32, scores.data(), scores.size());
  gguf_set_arr_data(file.gguf(), "tokenizer.ggml.token_type", GGUF_TYPE_INT32, types.data(), types.size());
  gguf_set_val_u32(file.gguf(), "tokenizer.ggml.unknown_token_id", 0);
  gguf_set_val_u32(file.gguf(), "tokenizer.ggml.bos_token_id", 1);
  gguf_set_val_u32(file.gguf(), "tokenizer.ggml.eos_token_id", 2);
}

void convert_llama2c(const char* checkpoint, const char* tokenizer, const char* out) {
  const Input input = open(checkpoint);
  int32_t header[7];  // dim, hidden, layers, heads, kv_heads, vocabulary (negative: an output of its own),
                      // context
  read(input.get(), header, 7);
  Shape s{.dim = header[0],
          .hidden = header[1],
          .layers = header[2],
          .heads = header[3],
          .kv_heads = header[4],
          .d = header[3] > 0 ? header[0] / header[3] : 0,
          .vocabulary = std::abs(header[5]),
          .context = header[6]};
  if (s.dim < 1 || s.hidden < 1 || s.layers < 1 || s.kv_heads < 1 || s.d < 1 || s.vocabulary < 1 ||
      s.context < 1)
    fail(std::string(checkpoint) + " is no checkpoint of llama2.c");
  File file(s);
  add_tokenizer(file, tokenizer, s.vocabulary);
  const auto next = [&](int64_t count) {
    std::vector<float> values(static_cast<size_t>(count));
    read(input.get(), values.data(), values.size());
    return values;
  };
  const auto matrix = [&](const std::string& name, int64_t cols, int64_t rows) {
    file.add(name, GGML_TYPE_F32, next(cols * rows).data(), cols, rows);
  };
  const auto matrices = [&](const char* name, int64_t cols, int64_t rows) {
    for (int64_t l = 0; l < s.layers; ++l) matrix(of_layer(l, name), cols, rows);
  };
  const auto norms = [&](const char* name) {
    for (int64_t l = 0; l < s.layers; ++l)
      file.add(of_layer(l, name), GGML_TYPE_F32, next(s.dim).data(), s.dim);
  };
  matrix("token_embd.weight", s.dim, s.vocabulary);
  norms("attn_norm");
  matrices("attn_q", s.dim, s.heads * s.d);
  matrices("attn_k", s.dim, s.kv_heads * s.d);
  matrices("attn_v", s.dim, s.kv_heads * s.d);
  matrices("attn_output", s.heads * s.d, s.dim);
  norms("ffn_norm");
  matrices("ffn_gate", s.dim, s.hidden);
  matrices("ffn_down", s.hidden, s.dim);
  matrices("ffn_up", s.dim, s.hidden);
  file.add("output_norm.weight", GGML_TYPE_F32, next(s.dim).data(), s.dim);
  next(s.context * s.d);  // tables of rope
  if (header[5] < 0) matrix("output.weight", s.dim, s.vocabulary);
  file.write(out);
}

void make_random(const Shape& s, ggml_type type, const char* out) {
  File file(s);
  std::mt19937 random(1);
  const bool gemma = s.architecture == "gemma2";
  gguf_set_val_str(file.gguf(), "tokenizer.ggml.model", "no_vocab");
  if (gemma) {
    file.set("attention.sliding_window", int64_t{256});
    file.set("attn_logit_softcapping", 50.0f);
    file.set("final_logit_softcapping", 30.0f);
  } else {
    file.set("rope.freq_base", 500000.0f);
  }
  const auto matrix = [&](const std::string& name, int64_t cols, int64_t rows, double gain = 1) {
    std::vector<float> values(static_cast<size_t>(cols * rows));
    std::normal_distribution<float> normal(0,
                                           static_cast<float>(gain / std::sqrt(static_cast<double>(cols))));
    for (float& e : values) e = normal(random);
    file.add(name, type, values.data(), cols, rows);
  };
  // gemma's norms multiply by what is stored, as all others do: converters add the 1.
  const std::vector<float> ones(static_cast<size_t>(s.dim), 1.0f);
  const auto norm = [&](const std::string& name) { file.add(name, GGML_TYPE_F32, ones.data(), s.dim); };
  matrix("token_embd.weight", s.dim, s.vocabulary);
  norm("output_norm.weight");
  if (!gemma) matrix("output.weight", s.dim, s.vocabulary);
  for (int64_t l = 0; l < s.layers; ++l) {
    norm(of_layer(l, "attn_norm"));
    // Logits of some units, so that rows attend to few keys, as in trained models.
    matrix(of_layer(l, "attn_q"), s.dim, s.heads * s.d, 2);
    matrix(of_layer(l, "attn_k"), s.dim, s.kv_heads * s.d);
    matrix(of_layer(l, "attn_v"), s.dim, s.kv_heads * s.d);
    matrix(of_layer(l, "attn_output"), s.heads * s.d, s.dim);
    norm(of_layer(l, "ffn_norm"));
    if (gemma) norm(of_layer(l, "post_attention_norm"));
    if (gemma) norm(of_layer(l, "post_ffw_norm"));
    matrix(of_layer(l, "ffn_gate"), s.dim, s.hidden);
    matrix(of_layer(l, "ffn_down"), s.hidden, s.dim);
    matrix(of_layer(l, "ffn_up"), s.dim, s.hidden);
  }
  file.write(out);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  if (what == "llama2c" && argc == 5) {
    convert_llama2c(argv[2], argv[3], argv[4]);
  } else if (what == "random" && argc == 5) {
    const int64_t d = std::atoi(argv[2]);
    const std::string type = argv[3];
    if (d != 64 && d != 128) fail("heads are of 64 or 128");
    if (type != "q4_0" && type != "q8_0") fail("weights are of q4_0 or q8_0");
    make_random({.dim = 1024,
                 .hidden = 2816,
                 .layers = 4,
                 .heads = 1024 / d,
                 .kv_heads = d == 64 ? 8 : 2,
                 .d = d,
                 .vocabulary = 4096,
                 .context = 32768 + 256},
                type == "q4_0" ? GGML_TYPE_Q4_0 : GGML_TYPE_Q8_0, argv[4]);
  } else if (what == "window" && argc == 3) {
    make_random({.architecture = "gemma2",
                 .dim = 256,
                 .hidden = 704,
                 .layers = 4,
                 .heads = 8,
                 .kv_heads = 4,
                 .d = 32,
                 .vocabulary = 1024,
                 .context = 8192},
                GGML_TYPE_F32, argv[2]);
  } else {
    fail("usage: make_gguf llama2c checkpoint tokenizer out | random d type out | window out");
  }
}
