#include <fastrope/compiled.hpp>

#include "calls.hpp"

Answers answers_of_library() { return all_calls(); }
