// Fibers, barriers and the launch of kernels on the host; see twin.h.
#include "../foggara.cuh"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#ifdef FOGGARA_RACES
#include <sanitizer/tsan_interface.h>
extern "C" void *__tsan_get_current_fiber();
extern "C" void *__tsan_create_fiber(unsigned flags);
extern "C" void __tsan_destroy_fiber(void *fiber);
extern "C" void __tsan_switch_to_fiber(void *fiber, unsigned flags);
extern "C" void AnnotateIgnoreReadsBegin(const char *file, int line);
extern "C" void AnnotateIgnoreReadsEnd(const char *file, int line);
extern "C" void AnnotateIgnoreWritesBegin(const char *file, int line);
extern "C" void AnnotateIgnoreWritesEnd(const char *file, int line);
#endif

namespace twin {

__thread Here here;

namespace {

constexpr u32 MAX_THREADS = 1024;
constexpr u32 BARRIERS = 16;  // of a block; 0 is that of __syncthreads
constexpr u32 MAX_SHARED = 227 * 1024;  // what a block can have on sm_90 and sm_100
// Not a power of two: the tops of all stacks would meet in the same few lines of the cache.
#ifdef __SANITIZE_ADDRESS__
constexpr u64 STACK = 256 * 1024 + 3 * 1024 + 192;
#else
constexpr u64 STACK = 64 * 1024 + 3 * 1024 + 192;
#endif
constexpr u64 PAGE = 64 * 1024;  // of any machine we know of
constexpr u64 CANARY = 0x5afe57ac5afe57acull;

Kernel *kernels = nullptr;

struct Copy {
    void *to;
    const void *from;
    u32 bytes, group;
};

struct Fiber {
    void *stack_pointer;
    void *known_as;  // to the finder of races
    u32 group;       // of copies, that the next one belongs to
    bool waited;  // for the kernel before
    std::vector<Copy> copies;
};

struct Warp {
    u32 runnable;      // lanes that could run now
    u32 at_barrier;    // lanes that wait for the block
    u32 at_round;      // lanes that wait for a round of a barrier to end
    u32 together;      // lanes that wait for others of the warp
    u32 mask[32];      // … for these
    Exchange exchange[32];
    void *operand[32];
    const char *what[32];
};

// A barrier with a number, for some warps of a block.
struct Barrier {
    u32 arrived;
    u32 waiting[MAX_THREADS / 32];  // lanes of each warp
    u32 openings;
    u64 come, opened[2];
};

// What one host thread needs to run blocks.
struct Runner {
    Here *here;  // of this host thread; found here it costs less
    const Kernel *kernel = nullptr;
    void **arguments;
    void *main_stack_pointer;
    void *main_known_as;
    const void *main_stack;
    size_t main_stack_bytes;
    u32 current;
    u32 runnable_warps;
    u32 threads, alive, at_barrier;
    u32 openings;
    u64 opened[2];
    bool backwards;
    u32 launches;
    u32 shared;
    u8 *shared_end;
    u8 *stacks;
    u8 *statics;
    u64 statics_bytes;
    Barrier barriers[BARRIERS];
    Warp warps[MAX_THREADS / 32];
    Fiber fibers[MAX_THREADS];
};

__thread Runner *runner;
pthread_key_t runner_key;

u64 round_up(u64 x, u64 to) { return (x + to - 1) / to * to; }

// Fibers end without returning from what they called, which the sanitizer of addresses then believes to be there still.
void forget_frames([[maybe_unused]] u8 *stack) {
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(stack, STACK);
#endif
}

void end_runner(void *pointer) {
    Runner *r = (Runner *)pointer;
    for (u32 i = 0; i < MAX_THREADS; i++) forget_frames(r->stacks + STACK * i);
#ifdef FOGGARA_RACES
    for (Fiber &fiber : r->fibers)
        if (fiber.known_as) __tsan_destroy_fiber(fiber.known_as);
#endif
    munmap(r->stacks, STACK * MAX_THREADS);
    u64 bytes = round_up(MAX_SHARED, PAGE);
    munmap(r->shared_end - bytes, bytes + PAGE);
    delete r;
    runner = nullptr;
}

// Where this library's thread-local variables are: all FG_SHARED ones, and two of ours.
int find_statics(dl_phdr_info *info, size_t, void *pointer) {
    Runner *r = (Runner *)pointer;
    bool ours = false;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) &part = info->dlpi_phdr[i];
        u64 begin = info->dlpi_addr + part.p_vaddr, at = (u64)&find_statics;
        if (part.p_type == PT_LOAD && at >= begin && at < begin + part.p_memsz) ours = true;
    }
    if (!ours) return 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        if (info->dlpi_phdr[i].p_type != PT_TLS) continue;
        r->statics = (u8 *)info->dlpi_tls_data;
        r->statics_bytes = r->statics ? info->dlpi_phdr[i].p_memsz : 0;
    }
    return 1;
}

u8 *map(u64 bytes) {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *found = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (found == MAP_FAILED) {
        perror("host twin: no memory for threads");
        abort();
    }
    return (u8 *)found;
}

u64 *stack_canary(const Runner &r, u32 thread) { return (u64 *)(r.stacks + STACK * thread); }

Runner *this_runner() {
    if (runner) return runner;
    Runner *r = new Runner();
    u64 bytes = round_up(MAX_SHARED, PAGE);
    u8 *shared = map(bytes + PAGE);
    if (mprotect(shared + bytes, PAGE, PROT_NONE)) {
        perror("host twin: no page to guard shared memory");
        abort();
    }
    r->stacks = map(STACK * MAX_THREADS);
    for (u32 i = 0; i < MAX_THREADS; i++) *stack_canary(*r, i) = CANARY;
    r->shared_end = shared + bytes;
#ifdef FOGGARA_RACES
    r->main_known_as = __tsan_get_current_fiber();
#endif
    r->here = &here;
    runner = r;
    pthread_setspecific(runner_key, r);
    dl_iterate_phdr(find_statics, r);
    return r;
}

// Saves the registers that a call must keep, and the stack; goes on with those of `to`.
extern "C" void foggara_twin_switch(void **save, void *to) __attribute__((visibility("hidden")));
#if defined(__x86_64__)
asm(R"(
    .text
    .globl foggara_twin_switch
    .hidden foggara_twin_switch
    .type foggara_twin_switch, @function
foggara_twin_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size foggara_twin_switch, . - foggara_twin_switch
)");
void *first_frame(u8 *stack_end, void (*entry)()) {
    u64 *top = (u64 *)stack_end;  // entered as if called: 8 below a multiple of 16
    top[-1] = 0;
    top[-2] = (u64)entry;
    for (int i = 3; i <= 8; i++) top[-i] = 0;
    return top - 8;
}
#elif defined(__aarch64__)
asm(R"(
    .text
    .globl foggara_twin_switch
    .hidden foggara_twin_switch
    .type foggara_twin_switch, %function
foggara_twin_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
    .size foggara_twin_switch, . - foggara_twin_switch
)");
void *first_frame(u8 *stack_end, void (*entry)()) {
    u64 *frame = (u64 *)(stack_end - 160);
    memset(frame, 0, 160);
    frame[11] = (u64)entry;
    return frame;
}
#else
#error "the host twin knows x86-64 and aarch64"
#endif

const char *name_of(const Runner &r) { return r.kernel ? r.kernel->name : "no kernel"; }

// Nothing can run any more: some wait for what never comes.
[[noreturn]] void stuck(Runner &r) {
    fprintf(stderr, "host twin: %s, block (%u, %u, %u): threads wait for others that never come\n", name_of(r),
            here.block.x, here.block.y, here.block.z);
    for (u32 w = 0; w * 32 < r.threads; w++) {
        Warp &warp = r.warps[w];
        if (warp.at_barrier) fprintf(stderr, "  warp %u: lanes %08x in __syncthreads\n", w, warp.at_barrier);
        for (u32 i = 0; i < BARRIERS; i++)
            if (u32 lanes = r.barriers[i].waiting[w])
                fprintf(stderr, "  warp %u: lanes %08x at barrier %u, where %u threads are\n", w, lanes, i, r.barriers[i].arrived);
        if (warp.at_round) fprintf(stderr, "  warp %u: lanes %08x wait for a round of a barrier\n", w, warp.at_round);
        u32 left = warp.together;
        while (left) {
            u32 first = __builtin_ctz(left), same = 0;
            for (u32 lane = first; lane < 32; lane++)
                if (left >> lane & 1 && warp.mask[lane] == warp.mask[first] && warp.what[lane] == warp.what[first])
                    same |= 1u << lane;
            fprintf(stderr, "  warp %u: lanes %08x in %s with mask %08x\n", w, same, warp.what[first], warp.mask[first]);
            left &= ~same;
        }
    }
    abort();
}

// The sanitizer of addresses must know on which stack we are.
#ifdef __SANITIZE_ADDRESS__
void change_stack(Runner &r, void **save, void *to, u32 thread, bool leaving) {
    const void *stack = thread < MAX_THREADS ? r.stacks + STACK * thread : r.main_stack;
    void *fake = nullptr;
    __sanitizer_start_switch_fiber(leaving ? nullptr : &fake, stack, thread < MAX_THREADS ? STACK : r.main_stack_bytes);
    foggara_twin_switch(save, to);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
}
void stack_changed() {
    const void *from;
    size_t bytes;
    __sanitizer_finish_switch_fiber(nullptr, &from, &bytes);
    if (runner->main_stack) return;
    runner->main_stack = from;
    runner->main_stack_bytes = bytes;
}
#elif defined(FOGGARA_RACES)
inline void change_stack(Runner &r, void **save, void *to, u32 thread, bool) {
    __tsan_switch_to_fiber(thread < MAX_THREADS ? r.fibers[thread].known_as : r.main_known_as, 1);
    foggara_twin_switch(save, to);
}
inline void stack_changed() {}
#else
inline void change_stack(Runner &, void **save, void *to, u32, bool) { foggara_twin_switch(save, to); }
inline void stack_changed() {}
#endif

// What the finder of races takes for order between threads: a block's begin and end, __syncthreads and __syncwarp; not
// shuffles, votes and products, which order nothing in memory.
#ifdef FOGGARA_RACES
void leave_to(void *place) { __tsan_release(place); }
void take_from(void *place) { __tsan_acquire(place); }
void known_fiber(Fiber &fiber) {
    if (!fiber.known_as) fiber.known_as = __tsan_create_fiber(0);
}
void exchange_unseen(Exchange exchange, u32 mask, void **operands) {
    AnnotateIgnoreReadsBegin("", 0);
    AnnotateIgnoreWritesBegin("", 0);
    exchange(mask, operands);
    AnnotateIgnoreWritesEnd("", 0);
    AnnotateIgnoreReadsEnd("", 0);
}
#else
inline void leave_to(void *) {}
inline void take_from(void *) {}
inline void known_fiber(Fiber &) {}
inline void exchange_unseen(Exchange exchange, u32 mask, void **operands) { exchange(mask, operands); }
#endif

u32 pick(const Runner &r, u32 set) { return r.backwards ? 31 - __builtin_clz(set) : __builtin_ctz(set); }

// Goes on with another fiber; `save` is where the running one's stack pointer goes.
inline __attribute__((always_inline)) void run_another(Runner &r, void **save, bool leaving = false) {
    u32 w = r.current / 32;
    if (!r.warps[w].runnable) {
        if (!r.runnable_warps) {
            if (r.alive) stuck(r);
            change_stack(r, save, r.main_stack_pointer, MAX_THREADS, leaving);
            return;
        }
        w = pick(r, r.runnable_warps);
    }
    u32 next = w * 32 + pick(r, r.warps[w].runnable);
    r.current = next;
    r.here->thread.x = next;
    change_stack(r, save, r.fibers[next].stack_pointer, next, leaving);
}

void open_barrier(Runner &r) {
    take_from(&r.at_barrier);
    leave_to(&r.opened[r.openings++ % 2]);
    r.at_barrier = 0;
    for (u32 w = 0; w * 32 < r.threads; w++) {
        Warp &warp = r.warps[w];
        if (!warp.at_barrier) continue;
        warp.runnable |= warp.at_barrier;
        warp.at_barrier = 0;
        r.runnable_warps |= 1u << w;
    }
}

void not_runnable(Runner &r, u32 thread) {
    Warp &warp = r.warps[thread / 32];
    warp.runnable &= ~(1u << thread % 32);
    if (!warp.runnable) r.runnable_warps &= ~(1u << thread / 32);
}

void fiber_main() {
    stack_changed();
    Runner &r = *runner;
    take_from(&r.threads);
    r.kernel->call(r.kernel->function, r.arguments);
    u32 thread = r.current;
    if (*stack_canary(r, thread) != CANARY) fail("used more stack than there is");
    if (!r.fibers[thread].waited) fail("ends without wait_for_kernel_before");
    leave_to(&r.alive);
    not_runnable(r, thread);
    r.alive--;
    if (r.alive && r.at_barrier == r.alive) open_barrier(r);
    void *gone;
    run_another(r, &gone, true);
    __builtin_unreachable();
}

void run_block(Runner &r) {
    memset(here.dynamic_shared, 0xff, r.shared_end - here.dynamic_shared);
    Here where = here;
    memset(r.statics, 0xff, r.statics_bytes);
    here = where;
    runner = &r;
    r.alive = r.threads;
    r.at_barrier = 0;
    for (Barrier &barrier : r.barriers) {
        barrier.arrived = 0;
        memset(barrier.waiting, 0, sizeof barrier.waiting);
    }
    r.backwards = (here.block.x + here.block.y + here.block.z + r.launches) % 2;
    u32 warps = (r.threads + 31) / 32;
    for (u32 w = 0; w < warps; w++) {
        u32 lanes = r.threads - w * 32;
        r.warps[w].runnable = lanes < 32 ? (1u << lanes) - 1 : 0xffffffffu;
        r.warps[w].at_barrier = r.warps[w].at_round = r.warps[w].together = 0;
    }
    r.runnable_warps = warps == 32 ? 0xffffffffu : (1u << warps) - 1;
    for (u32 i = 0; i < r.threads; i++) {
        Fiber &fiber = r.fibers[i];
        forget_frames(r.stacks + STACK * i);
        known_fiber(fiber);
        fiber.stack_pointer = first_frame(r.stacks + STACK * (i + 1), fiber_main);
        fiber.group = 0;
        fiber.waited = false;
        fiber.copies.clear();
    }
    r.current = pick(r, r.runnable_warps) * 32;
    leave_to(&r.threads);
    run_another(r, &r.main_stack_pointer);
    take_from(&r.alive);
    for (u8 *at = here.dynamic_shared + r.shared; at < r.shared_end; at++)
        if (*at != 0xff) fail("wrote behind its dynamic shared memory");
}

struct sigaction before;

// An access outside of every buffer: say whose it was, and leave the rest to who was there before.
void on_fault(int signal, siginfo_t *info, void *) {
    Runner *r = runner;
    if (r && r->kernel) {
        char text[512];
        int len = snprintf(text, sizeof text, "host twin: %s, block (%u, %u, %u), thread %u of %u: no memory at %p\n",
                           r->kernel->name, here.block.x, here.block.y, here.block.z, here.thread.x, r->threads,
                           info->si_addr);
        (void)!write(2, text, len);
        for (u32 i = 0; i < r->kernel->parameters; i++) {
            if (r->kernel->sizes[i] != 8) continue;
            u64 value = *(u64 *)r->arguments[i];
            len = snprintf(text, sizeof text, "  argument %u is 0x%llx: %lld bytes from there\n", i, value,
                           (long long)((u64)info->si_addr - value));
            (void)!write(2, text, len);
        }
    }
    sigaction(signal, &before, nullptr);
}

__attribute__((constructor)) void prepare() {
    pthread_key_create(&runner_key, end_runner);
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, &before);
}

}  // namespace

void add(Kernel *kernel) {
    kernel->next = kernels;
    kernels = kernel;
}

void fail(const char *what) {
    fprintf(stderr, "host twin: %s, block (%u, %u, %u), thread %u of %u: %s\n", runner ? name_of(*runner) : "no kernel",
            here.block.x, here.block.y, here.block.z, here.thread.x, here.block_size.x, what);
    abort();
}

// Called by the compiler's checks before they say what is wrong.
extern "C" __attribute__((visibility("default"))) void __ubsan_on_report() {
    if (!runner) return;
    fprintf(stderr, "host twin: %s, block (%u, %u, %u), thread %u of %u:\n", name_of(*runner), here.block.x, here.block.y,
            here.block.z, here.thread.x, here.block_size.x);
}

void block_together() {
    Runner &r = *runner;
    u32 thread = r.current;
    // Who is ahead at the next barrier must not be heard from at this one: there are two places, by turns.
    u64 *opened = &r.opened[r.openings % 2];
    leave_to(&r.at_barrier);
    if (++r.at_barrier == r.alive) {
        open_barrier(r);
    } else {
        r.warps[thread / 32].at_barrier |= 1u << thread % 32;
        not_runnable(r, thread);
        run_another(r, &r.fibers[thread].stack_pointer);
    }
    take_from(opened);
}

void barrier(u32 number, u32 threads, bool wait) {
    if (number == 0 || number >= BARRIERS || threads % 32) fail("a barrier has a number from 1 to 15, and whole warps");
    Runner &r = *runner;
    u32 thread = r.current;
    Barrier &b = r.barriers[number];
    u64 *opened = &b.opened[b.openings % 2];
    leave_to(&b.come);
    if (++b.arrived > threads) fail("more threads come to a barrier than it is for");
    if (b.arrived == threads) {
        take_from(&b.come);
        leave_to(&b.opened[b.openings++ % 2]);
        b.arrived = 0;
        for (u32 w = 0; w * 32 < r.threads; w++) {
            if (!b.waiting[w]) continue;
            r.warps[w].runnable |= b.waiting[w];
            b.waiting[w] = 0;
            r.runnable_warps |= 1u << w;
        }
    } else if (wait) {
        b.waiting[thread / 32] |= 1u << thread % 32;
        not_runnable(r, thread);
        run_another(r, &r.fibers[thread].stack_pointer);
    }
    if (wait) take_from(opened);
}

// Of a barrier that counts, all in its 8 bytes.
struct Rounds {
    u16 count, missing;  // who must arrive in a round, and who has not yet
    i32 coming : 31;     // bytes that were said to come, less those that came
    u32 parity : 1;      // of the round that goes on
};
static_assert(sizeof(Rounds) == sizeof(u64), "a barrier");

void end_round(Rounds &rounds) {
    if (rounds.missing || rounds.coming) return;
    rounds.missing = rounds.count;
    rounds.parity ^= 1;
    Runner &r = *runner;
    for (u32 w = 0; w * 32 < r.threads; w++) {
        Warp &warp = r.warps[w];
        if (!warp.at_round) continue;
        warp.runnable |= warp.at_round;
        warp.at_round = 0;
        r.runnable_warps |= 1u << w;
    }
}

void init_barrier(u64 *barrier, u32 count) { *(Rounds *)barrier = {(u16)count, (u16)count, 0, 0}; }

void arrive(u64 *barrier, u32 bytes) {
    Rounds &rounds = *(Rounds *)barrier;
    if (!rounds.missing) fail("more arrive at a barrier than it counts");
    leave_to(barrier);
    rounds.coming += bytes;
    rounds.missing--;
    end_round(rounds);
}

void bytes_came(u64 *barrier, u32 bytes) {
    Rounds &rounds = *(Rounds *)barrier;
    leave_to(barrier);
    rounds.coming -= bytes;
    end_round(rounds);
}

void await_round(u64 *barrier, u32 parity) {
    Runner &r = *runner;
    u32 thread = r.current;
    while (((Rounds *)barrier)->parity == parity) {
        r.warps[thread / 32].at_round |= 1u << thread % 32;
        not_runnable(r, thread);
        run_another(r, &r.fibers[thread].stack_pointer);
    }
    take_from(barrier);
}

void warp_together(u32 mask, const char *what, Exchange exchange, void *operand) {
    Runner &r = *runner;
    u32 thread = r.current, lane = thread % 32;
    Warp &warp = r.warps[thread / 32];
    if (!(mask >> lane & 1)) fail("is not in its own mask");
    warp.operand[lane] = operand;
    warp.mask[lane] = mask;
    warp.exchange[lane] = exchange;
    warp.what[lane] = what;
    warp.together |= 1u << lane;
    if ((warp.together & mask) == mask) {
        bool same = true;
        for (u32 other = 0; other < 32; other++)
            if (mask >> other & 1) same &= warp.mask[other] == mask && warp.exchange[other] == exchange;
        if (same) {
            if (exchange) exchange_unseen(exchange, mask, warp.operand);
            warp.together &= ~mask;
            warp.runnable |= mask;
            return;
        }
    }
    not_runnable(r, thread);
    run_another(r, &r.fibers[thread].stack_pointer);
}

void check_shared(const void *pointer, u32 bytes) {
    const u8 *at = (const u8 *)pointer;
    const Runner &r = *runner;
    if ((u64)at % bytes) fail("an address in shared memory is not aligned to what is moved at once");
    bool dynamic = at >= here.dynamic_shared && at + bytes <= here.dynamic_shared + r.shared;
    bool fixed = at >= r.statics && at + bytes <= r.statics + r.statics_bytes;
    if (!dynamic && !fixed) fail("an address should be in shared memory, and is not");
}

// For the finder of races: see reads_16.
#ifdef FOGGARA_RACES
extern "C" void __tsan_read_range(void *pointer, unsigned long bytes);
extern "C" void __tsan_write_range(void *pointer, unsigned long bytes);
void reads(const void *pointer, u32 bytes) { __tsan_read_range((void *)pointer, bytes); }
void writes(void *pointer, u32 bytes) { __tsan_write_range(pointer, bytes); }
#else
void reads(const void *, u32) {}
void writes(void *, u32) {}
#endif

void copy_async(void *shared, const void *global, u32 bytes) {
    check_shared(shared, bytes);
    if ((u64)global % bytes) fail("copies from an address that is not aligned to what is copied");
    memset(shared, 0xff, bytes);
    writes(shared, bytes);
    Fiber &fiber = runner->fibers[runner->current];
    fiber.copies.push_back({shared, global, bytes, fiber.group});
}

void wait_for_kernel_before() { runner->fibers[runner->current].waited = true; }

void copy_async_commit() { runner->fibers[runner->current].group++; }

void copy_async_wait(u32 left) {
    Fiber &fiber = runner->fibers[runner->current];
    u64 done = 0;
    while (done < fiber.copies.size() && fiber.copies[done].group + left < fiber.group) {
        const Copy &copy = fiber.copies[done++];
        if (copy.from) reads(copy.from, copy.bytes);
        writes(copy.to, copy.bytes);
        if (copy.from) memcpy(copy.to, copy.from, copy.bytes);
        else memset(copy.to, 0, copy.bytes);
    }
    fiber.copies.erase(fiber.copies.begin(), fiber.copies.begin() + done);
}

void vote_exchange(u32 mask, void **operands) {
    u32 votes = 0;
    for (u32 lane = 0; lane < 32; lane++)
        if (mask >> lane & 1) votes |= (u32)((Vote *)operands[lane])->value << lane;
    for (u32 lane = 0; lane < 32; lane++)
        if (mask >> lane & 1) ((Vote *)operands[lane])->out = votes;
}

void matrices_exchange(u32, void **operands) {
    for (u32 i = 0; i < 32; i++) check_shared(((Matrices *)operands[i])->row);
    for (u32 lane = 0; lane < 32; lane++)
        for (u32 matrix = 0; matrix < 4; matrix++) {
            const u8 *row = (const u8 *)((Matrices *)operands[matrix * 8 + lane / 4])->row;
            memcpy(&((Matrices *)operands[lane])->out[matrix], row + lane % 4 * 4, 4);
        }
}

void matrices_transposed_exchange(u32, void **operands) {
    for (u32 i = 0; i < 32; i++) check_shared(((Matrices *)operands[i])->row);
    for (u32 lane = 0; lane < 32; lane++)
        for (u32 matrix = 0; matrix < 4; matrix++) {
            u32 pair = 0;
            for (u32 half = 0; half < 2; half++) {
                const u8 *row = (const u8 *)((Matrices *)operands[matrix * 8 + lane % 4 * 2 + half])->row;
                u16 element;
                memcpy(&element, row + lane / 4 * 2, 2);
                pair |= (u32)element << 16 * half;
            }
            ((Matrices *)operands[lane])->out[matrix] = pair;
        }
}

// Aligned to the greatest, what is below 2^-32 of that cut off. (Hopper's tensor cores keep fewer bits; with these, results are as
// near to right as floats can be.)
float add_together(float sum, const float (&products)[16]) {
    float greatest = fabsf(sum);
    for (float x : products) greatest = fmaxf(greatest, fabsf(x));
    bool finite = fabsf(sum) <= __FLT_MAX__;
    for (float x : products) finite = finite && fabsf(x) <= __FLT_MAX__;
    if (!finite) {
        for (float x : products) sum += x;
        return sum;
    }
    if (greatest == 0.0f) return 0.0f;
    int exponent = ilogbf(greatest);
    double up = ldexp(1.0, 32 - exponent), down = ldexp(1.0, exponent - 32);
    long long all = (long long)(sum * up);
    for (float x : products) all += (long long)(x * up);
    return (float)(all * down);
}

static float half_of(u32 pair, bool high, bool is_f16) {
    u16 bits = (u16)(high ? pair >> 16 : pair);
    return is_f16 ? to_float(f16{bits}) : to_float(bf16{bits});
}
static void multiply(void **operands, bool is_f16) {
    float a[16][16], b[16][8], d[16][8];
    for (u32 lane = 0; lane < 32; lane++) {
        const Multiplication &m = *(Multiplication *)operands[lane];
        u32 row = lane / 4, column = lane % 4 * 2;
        for (u32 i = 0; i < 4; i++) {
            float *to = &a[row + i % 2 * 8][column + i / 2 * 8];
            to[0] = half_of(m.a[i], false, is_f16);
            to[1] = half_of(m.a[i], true, is_f16);
            d[row + i / 2 * 8][column + i % 2] = m.d[i];
        }
        for (u32 i = 0; i < 2; i++) {
            b[column + i * 8][row] = half_of(m.b[i], false, is_f16);
            b[column + i * 8 + 1][row] = half_of(m.b[i], true, is_f16);
        }
    }
    for (u32 row = 0; row < 16; row++)
        for (u32 column = 0; column < 8; column++) {
            float products[16];
            for (u32 k = 0; k < 16; k++) products[k] = a[row][k] * b[k][column];
            d[row][column] = add_together(d[row][column], products);
        }
    for (u32 lane = 0; lane < 32; lane++) {
        const Multiplication &m = *(Multiplication *)operands[lane];
        for (u32 i = 0; i < 4; i++) m.d[i] = d[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
    }
}
void multiplication_exchange(u32, void **operands) { multiply(operands, false); }
void multiplication_f16_exchange(u32, void **operands) { multiply(operands, true); }

}  // namespace twin

#ifdef FOGGARA_RACES
// Each lane has a place of its own to hear from: who is ahead by then has left something newer in a common one.
static void syncwarp_exchange(u32 mask, void **operands) {
    using namespace twin;
    take_from(&runner->warps[runner->current / 32].together);
    for (u32 lane = 0; lane < 32; lane++)
        if (mask >> lane & 1) leave_to(operands[lane]);
}
void fg_syncwarp(u32 mask) {
    using namespace twin;
    u64 place;
    leave_to(&runner->warps[runner->current / 32].together);
    warp_together(mask, "__syncwarp", syncwarp_exchange, &place);
    take_from(&place);
}
#else
void fg_syncwarp(u32 mask) { twin::warp_together(mask, "__syncwarp", nullptr, nullptr); }
#endif

// What kernels/src/cuda/twin.rs calls.

#define FG_EXPORT extern "C" __attribute__((visibility("default")))

// A kernel by its name; null where there is none.
FG_EXPORT const twin::Kernel *foggara_twin_find(const char *name) {
    for (const twin::Kernel *kernel = twin::kernels; kernel; kernel = kernel->next)
        if (!strcmp(kernel->name, name)) return kernel;
    return nullptr;
}

// How many parameters it has, and where their sizes in bytes stand.
FG_EXPORT u32 foggara_twin_parameters(const twin::Kernel *kernel, const u32 **sizes) {
    *sizes = kernel->sizes;
    return kernel->parameters;
}

// Runs it; null, or why not.
FG_EXPORT const char *foggara_twin_launch(const twin::Kernel *kernel, const u32 *grid, u32 threads, u32 shared,
                                          void **arguments) {
    using namespace twin;
    if (!grid[0] || !grid[1] || !grid[2] || grid[0] > 0x7fffffffu || grid[1] > 65535 || grid[2] > 65535)
        return "a grid must have 1 to 2147483647 times 1 to 65535 times 1 to 65535 blocks";
    if (!threads || threads > kernel->threads) return "more threads a block than the kernel was compiled for, or none";
    if (shared > MAX_SHARED) return "more shared memory than a multiprocessor has";
    Runner *r = this_runner();
    r->kernel = kernel;
    r->arguments = arguments;
    r->threads = threads;
    r->shared = shared;
    here.thread = {0, 0, 0};
    here.block_size = {threads, 1, 1};
    here.grid = {grid[0], grid[1], grid[2]};
    here.dynamic_shared = r->shared_end - round_up(shared, 128);
    // Threads of one block and blocks of one launch have no order: every other time, the last comes first.
    bool backwards = r->launches % 2;
    for (u32 z = 0; z < grid[2]; z++)
        for (u32 y = 0; y < grid[1]; y++)
            for (u32 x = 0; x < grid[0]; x++) {
                here.block = {x, y, z};
                if (backwards) here.block = {grid[0] - 1 - x, grid[1] - 1 - y, grid[2] - 1 - z};
                run_block(*r);
            }
    r->launches++;
    r->kernel = nullptr;
    return nullptr;
}
