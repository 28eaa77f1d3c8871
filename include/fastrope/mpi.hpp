// Attention over sequences that are spread over MPI ranks: mpi::attend.
#pragma once

#include "fastrope/mpi/attend.hpp"
