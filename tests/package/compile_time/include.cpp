// What including the library costs a file.
#include <fastrope/fastrope.hpp>
