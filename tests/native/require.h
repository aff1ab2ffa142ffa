// REQUIRE(condition, format, ...): ends the program with a line that says what does not hold.
#pragma once
#include <cstdio>
#include <cstdlib>

#define REQUIRE(condition, ...)                           \
  do {                                                    \
    if (!(condition)) {                                   \
      std::printf("line %d: %s: ", __LINE__, #condition); \
      std::printf(__VA_ARGS__);                           \
      std::printf("\n");                                  \
      std::exit(1);                                       \
    }                                                     \
  } while (0)
