// Arguments: the words of a command line, files and options with values, `--name value`, in any order.
//
//     Arguments words(argc, argv, "FILE [--tokens N]");
//     const long tokens = words.number<long>("--tokens", 1024, /*least=*/1);
//     const std::vector<std::string> files = words.files(1);
// Everything that is wrong is thrown, with the usage.
#pragma once

#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace examples {

class Arguments {
 public:
  /// flags: options without a value.
  Arguments(int count, char** words, const char* usage, const std::vector<std::string>& flags = {})
      : usage_(std::string("\nusage: ") + words[0] + ' ' + usage) {
    for (int i = 1; i < count; ++i) {
      const std::string word = words[i];
      bool has_value = word.starts_with("--");
      if (!has_value) {
        files_.push_back(word);
        continue;
      }
      for (const std::string& flag : flags) has_value = has_value && word != flag;
      if (has_value && i + 1 == count) wrong(word + " has no value");
      if (!given_.emplace(word, has_value ? words[++i] : "").second) wrong(word + " is given twice");
    }
  }

  /// Whether an option was given. Options are asked for once, and all before files().
  bool flag(const std::string& name) { return given_.erase(name) > 0; }
  std::string text(const std::string& name, const std::string& otherwise) {
    const auto option = given_.find(name);
    if (option == given_.end()) return otherwise;
    const std::string value = option->second;
    given_.erase(option);
    return value;
  }
  template <class Number>
  Number number(const std::string& name, Number otherwise, Number least) {
    const std::string value = text(name, "");
    return value.empty() ? otherwise : parsed(name, value, least);
  }
  /// Of numbers with commas between.
  template <class Number>
  std::vector<Number> numbers(const std::string& name, const std::string& otherwise, Number least) {
    std::vector<Number> all;
    for (const std::string& value : words(name, otherwise)) all.push_back(parsed(name, value, least));
    return all;
  }
  std::vector<std::string> words(const std::string& name, const std::string& otherwise) {
    std::istringstream list(text(name, otherwise));
    std::vector<std::string> all;
    for (std::string word; std::getline(list, word, ',');) all.push_back(word);
    return all;
  }

  /// So many files, and no option that nobody asked for.
  const std::vector<std::string>& files(std::size_t count) const {
    if (!given_.empty()) wrong("unknown option " + given_.begin()->first);
    if (files_.size() != count)
      wrong(std::to_string(count) + " files are needed, got " + std::to_string(files_.size()));
    return files_;
  }
  [[noreturn]] void wrong(const std::string& what) const { throw std::runtime_error(what + usage_); }

 private:
  template <class Number>
  Number parsed(const std::string& name, const std::string& value, Number least) const {
    std::istringstream in(value);
    Number number{};
    if (!(in >> number) || in.peek() != EOF || !(number >= least)) {
      std::ostringstream message;
      message << name << ' ' << value << ": a number from " << least << " on is needed";
      wrong(message.str());
    }
    return number;
  }

  std::string usage_;
  std::vector<std::string> files_ = {};
  std::map<std::string, std::string> given_ = {};
};

}  // namespace examples
