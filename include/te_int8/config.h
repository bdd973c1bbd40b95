// Version and visibility. Public names live in the inline namespace te_int8::v0, so that two
// versions of the library in one process do not mix their types.
#pragma once

#define TE_INT8_VERSION_MAJOR 0
#define TE_INT8_VERSION_MINOR 1
#define TE_INT8_VERSION_PATCH 0

// Symbols are hidden by default; TE_INT8_API marks what other binaries may link to.
#define TE_INT8_API __attribute__((visibility("default")))
