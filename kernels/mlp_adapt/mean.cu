// The mean over tasks, in an order of its own: [tasks, numbers] -> [numbers]; 32 numbers a program.
extern __shared__ float global_smem[];
extern "C" __global__ void __launch_bounds__(256)
    mean_over_tasks(const float *__restrict__ each, float *mean, int tasks, int numbers) {
    const int column = threadIdx.x % 32, from = threadIdx.x / 32, number = blockIdx.x * 32 + column;
    float sum = 0.f;
    if (number < numbers) {
#pragma unroll 8
        for (int task = from; task < tasks; task += 8) sum += each[(long long)task * numbers + number];
    }
    global_smem[threadIdx.x] = sum;
    __syncthreads();
    if (from || number >= numbers) return;
    for (int i = 1; i < 8; i++) sum += global_smem[i * 32 + column];
    mean[number] = sum / tasks;
}
