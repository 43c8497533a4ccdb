// Enough of CUDA to run the kernels of csrc/include/fastalter/*.cuh on the host, where sanitizers can watch them. A
// block's threads are std::threads; its barrier is a std::barrier; the lanes of a warp exchange values through an
// array.
//
// No intrinsic orders memory that does not do so on a GPU: shuffles, ballots and atomics are invisible to
// ThreadSanitizer as synchronization, so that only __syncthreads and __syncwarp keep it from reporting a race.
#ifndef FASTALTER_CUDA_ON_HOST_H
#define FASTALTER_CUDA_ON_HOST_H

#include <array>
#include <atomic>
#include <barrier>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __shared__ static  // of a kernel whose blocks run one after the other
#define __launch_bounds__(...)

#if defined(__SANITIZE_THREAD__)
#define ANNOTATE(what) extern "C" void what(const char*, int);
#else
#define ANNOTATE(what) \
    inline void what(const char*, int) {}
#endif
ANNOTATE(AnnotateIgnoreSyncBegin)
ANNOTATE(AnnotateIgnoreSyncEnd)
ANNOTATE(AnnotateIgnoreReadsBegin)
ANNOTATE(AnnotateIgnoreReadsEnd)
ANNOTATE(AnnotateIgnoreWritesBegin)
ANNOTATE(AnnotateIgnoreWritesEnd)
#undef ANNOTATE

namespace host {

// While one of these lives, ThreadSanitizer sees nothing of what its thread does: neither accesses nor synchronization.
struct Unseen {
    Unseen() {
        AnnotateIgnoreSyncBegin(__FILE__, __LINE__);
        AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
        AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
    }
    ~Unseen() {
        AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
        AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
        AnnotateIgnoreSyncEnd(__FILE__, __LINE__);
    }
};

[[noreturn]] inline void fail(const char* what) {
    std::printf("cuda_on_host: %s\n", what);
    std::fflush(stdout);
    std::_Exit(1);
}

constexpr int LANES = 32;
enum class Intrinsic { NONE, SHUFFLE, BALLOT };

struct Warp {
    explicit Warp(int threads) : barrier(threads) {
        for (int l = 0; l < LANES; ++l) exchanges_of[l] = l < threads ? ~0u : 0;
    }

    std::barrier<> barrier;
    std::array<std::atomic<unsigned>, LANES> exchanges_of{};  // how many a lane takes part in; known once it has left
    // Two of each, used in turn: a lane may write the next value while another still reads this one.
    std::array<std::array<std::atomic<uint64_t>, LANES>, 2> values{};
    std::array<std::array<std::atomic<Intrinsic>, LANES>, 2> intrinsics{};
};

struct Block {
    explicit Block(int threads) : barrier(threads) {
        for (int first = 0; first < threads; first += LANES) {
            warps.push_back(std::make_unique<Warp>(threads - first < LANES ? threads - first : LANES));
        }
    }

    std::barrier<> barrier;
    std::vector<std::unique_ptr<Warp>> warps;
};

struct Index {
    int x;
};

inline thread_local Block* block = nullptr;
inline thread_local Warp* warp = nullptr;
inline thread_local int lane = 0;
inline thread_local unsigned exchanges = 0;

// The values that the lanes of the warp bring to this call of an intrinsic.
struct Exchanged {
    uint64_t of[LANES];
    uint32_t lanes;
};

inline Exchanged exchange(Intrinsic intrinsic, uint32_t mask, uint64_t value) {
    const Unseen unseen;
    const unsigned number = exchanges++, turn = number % 2;
    warp->values[turn][lane] = value;
    warp->intrinsics[turn][lane] = intrinsic;
    warp->barrier.arrive_and_wait();
    Exchanged all{};
    for (int l = 0; l < LANES; ++l) {
        if (number >= warp->exchanges_of[l]) continue;
        if (!(mask >> l & 1)) fail("a warp intrinsic without all lanes of the warp");
        if (warp->intrinsics[turn][l] != intrinsic) fail("lanes meet in different intrinsics");
        all.of[l] = warp->values[turn][l];
        all.lanes |= 1u << l;
    }
    return all;
}

template <class T>
T shuffle(uint32_t mask, T value, int from) {
    const Exchanged all = exchange(Intrinsic::SHUFFLE, mask, static_cast<uint64_t>(value));
    if (from < 0 || from >= LANES) return value;
    if (!(all.lanes >> from & 1)) fail("a shuffle from a lane that has left");
    return static_cast<T>(all.of[from]);
}

}  // namespace host

inline thread_local host::Index threadIdx, blockIdx, blockDim, gridDim;

namespace host {

template <class Kernel, class... Arguments>
void run_thread(Block* of, int b, int t, int grid, int threads, const Kernel& kernel, const Arguments&... arguments) {
    threadIdx = {t}, blockIdx = {b}, blockDim = {threads}, gridDim = {grid};
    block = of;
    warp = of->warps[t / LANES].get();
    lane = t % LANES;
    exchanges = 0;
    kernel(arguments...);
    // A thread that has returned is waited for no longer.
    const Unseen unseen;
    warp->exchanges_of[lane] = exchanges;
    warp->barrier.arrive_and_drop();
    block->barrier.arrive_and_drop();
}

}  // namespace host

// Calls kernel(arguments...) once per thread of the grid, `at_once` blocks at a time. Only a kernel that keeps its
// __shared__ storage per block itself can run more than one at once.
template <class Kernel, class... Arguments>
void launch_at_once(int at_once, int grid, int threads, const Kernel& kernel, const Arguments&... arguments) {
    for (int first = 0; first < grid; first += at_once) {
        std::vector<std::unique_ptr<host::Block>> blocks;
        std::vector<std::thread> all;
        for (int b = first; b < grid && b < first + at_once; ++b) {
            blocks.push_back(std::make_unique<host::Block>(threads));
            for (int t = 0; t < threads; ++t) {
                all.emplace_back([&, b, t, of = blocks.back().get()] {
                    host::run_thread(of, b, t, grid, threads, kernel, arguments...);
                });
            }
        }
        for (std::thread& thread : all) thread.join();
    }
}

template <class Kernel, class... Arguments>
void launch(int grid, int threads, const Kernel& kernel, const Arguments&... arguments) {
    launch_at_once(1, grid, threads, kernel, arguments...);
}

// ---- what kernels call ---------------------------------------------------------------------------------------------

inline void __syncthreads() {
    host::block->barrier.arrive_and_wait();
}
inline void __syncwarp(uint32_t = ~0u) {
    host::warp->barrier.arrive_and_wait();
}

template <class T>
T __shfl_sync(uint32_t mask, T value, int from) {
    return host::shuffle(mask, value, from);
}

template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned distance) {
    return host::shuffle(mask, value, host::lane - static_cast<int>(distance));
}

template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int distance) {
    return host::shuffle(mask, value, host::lane ^ distance);
}

inline uint32_t __ballot_sync(uint32_t mask, bool flag) {
    const host::Exchanged all = host::exchange(host::Intrinsic::BALLOT, mask, flag);
    uint32_t flags = 0;
    for (int l = 0; l < host::LANES; ++l) flags |= uint32_t((all.lanes >> l & 1) && all.of[l]) << l;
    return flags;
}

template <class T>
T atomicAdd(T* to, T value) {
    return __atomic_fetch_add(to, value, __ATOMIC_RELAXED);
}

inline void __nanosleep(unsigned) {
    std::this_thread::yield();
}
inline int __popc(uint32_t bits) {
    return __builtin_popcount(bits);
}
inline int __ffs(uint32_t bits) {
    return __builtin_ffs(static_cast<int>(bits));
}

inline uint64_t __umul64hi(uint64_t one, uint64_t other) {
    return static_cast<uint64_t>(static_cast<unsigned __int128>(one) * other >> 64);
}

// Byte k of the result is byte (selector >> 4k) & 7 of low | high << 32.
inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t selector) {
    const uint64_t bytes = low | static_cast<uint64_t>(high) << 32;
    uint32_t result = 0;
    for (int k = 0; k < 4; ++k) result |= uint32_t(bytes >> 8 * (selector >> 4 * k & 7) & 0xff) << 8 * k;
    return result;
}

#endif
