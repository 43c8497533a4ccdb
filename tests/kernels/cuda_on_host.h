// Enough of CUDA to run the kernels of csrc/include/fastalter/*.cuh on the host, where sanitizers can watch them: a
// block's threads are std::threads, its blocks run one after the other.
#pragma once

#include <cstdint>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(...)

struct Index {
    int x;
};
inline thread_local Index threadIdx, blockIdx, blockDim, gridDim;

// Calls kernel(arguments...) once per thread of the grid.
template <class Kernel, class... Arguments>
void launch(int grid, int block, Kernel kernel, Arguments... arguments) {
    for (int b = 0; b < grid; ++b) {
        std::vector<std::thread> threads;
        for (int t = 0; t < block; ++t) {
            threads.emplace_back([=] {
                threadIdx = {t}, blockIdx = {b}, blockDim = {block}, gridDim = {grid};
                kernel(arguments...);
            });
        }
        for (std::thread& thread : threads) thread.join();
    }
}
