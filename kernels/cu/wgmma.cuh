// Hopper's products of warpgroups (wgmma): how their operands lie in shared memory, and how they are waited for. On the host, which
// plays them by plain arithmetic, they are done at once.
#pragma once
#include "foggara.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(FOGGARA_HOST)
// Rows of 128 bytes, eight of which make a pattern of 1024 bytes (its beginning is a multiple of that): unit u of row r is at
// u ^ (r % 8).
FG_DEVICE u32 place_wide(u32 row, u32 unit) { return row * 128 + (unit ^ (row % 8)) * 16; }

// How wgmma is told of the first of rows that lie as place_wide says; 2 more are the next 32 bytes of each.
#ifdef FOGGARA_HOST
FG_DEVICE u64 describe(const u8 *rows) {
    if ((u64)rows % 1024) twin::fail("describes rows that do not begin at a multiple of 1024 bytes");
    return (u64)rows >> 4;
}
FG_DEVICE u32 described(u64 rows, u32 row, u32 pair) {
    u64 at = (rows << 4) + row * 128 + pair * 4;
    return *(const u32 *)(at ^ (at >> 7 & 7) << 4);
}
FG_DEVICE void begin_multiply() {}
FG_DEVICE void commit_multiply() {}
template <int N>
FG_DEVICE void wait_multiply() {}
FG_DEVICE void show_shared() {}
template <class T>
FG_DEVICE void pin(T &) {}
template <int N>
FG_DEVICE void give_registers() {}
template <int N>
FG_DEVICE void take_registers() {}
#else
FG_DEVICE u64 describe(const u8 *rows) {
    u64 address = shared_address(rows) >> 4 & 0x3fff;
    return address | (u64)1 << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}
#define FG_SUMS_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define FG_SUMS_16(i) FG_SUMS_4(i), FG_SUMS_4(i + 4), FG_SUMS_4(i + 8), FG_SUMS_4(i + 12)
#define FG_SUMS_8(i) FG_SUMS_4(i), FG_SUMS_4(i + 4)
#define FG_SUMS_32(i) FG_SUMS_16(i), FG_SUMS_16(i + 16)
#define FG_SUMS_64 FG_SUMS_32(0), FG_SUMS_32(32)
// Names of the first of them.
#define FG_NAMES_4 "%0, %1, %2, %3"
#define FG_NAMES_8 FG_NAMES_4 ", %4, %5, %6, %7"
#define FG_NAMES_16 FG_NAMES_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define FG_NAMES_32 FG_NAMES_16 \
    ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define FG_NAMES_40 FG_NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define FG_NAMES_48 FG_NAMES_40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define FG_NAMES_56 FG_NAMES_48 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define FG_NAMES_64 FG_NAMES_56 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define FG_NAMES_68 FG_NAMES_64 \
    ", %64, %65, %66, %67"
#define FG_NAMES_72 FG_NAMES_64 \
    ", %64, %65, %66, %67, %68, %69, %70, %71"
#define FG_NAMES_80 FG_NAMES_64 \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define FG_NAMES_96 FG_NAMES_80 \
    ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define FG_NAMES_112 FG_NAMES_96 \
    ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define FG_NAMES_128 FG_NAMES_112 \
    ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
FG_DEVICE void begin_multiply() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
FG_DEVICE void commit_multiply() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most N of the committed are not done.
template <int N>
FG_DEVICE void wait_multiply() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}
// What threads have written to shared memory is there for wgmma.
FG_DEVICE void show_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// The value is what it is from here on: not earlier, when wgmma may still be at work.
FG_DEVICE void pin(float &x) { asm volatile("" : "+f"(x)::"memory"); }
FG_DEVICE void pin(u32 &x) { asm volatile("" : "+r"(x)::"memory"); }
// A warpgroup goes on with N registers a thread, so that others can have more; or with N that others have given.
template <int N>
FG_DEVICE void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
FG_DEVICE void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
#endif
#endif
