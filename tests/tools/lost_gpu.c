// Plays NVIDIA's driver and its compiler (libcuda.so, libnvrtc.so.13) for a worker that computes nothing: every call succeeds and does
// nothing, until the file that LOST_GPU names is there. From then on every call says that a kernel failed, as after a real fault.

#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, LAUNCH_FAILED = 719 };

static int answer(void) {
    const char *lost = getenv("LOST_GPU");
    return lost && access(lost, F_OK) == 0 ? LAUNCH_FAILED : SUCCESS;
}

// Something that is not nothing.
static int place;

#define DOES_NOTHING(name) int name(void) { return answer(); }
#define GIVES_A_HANDLE(name) int name(void **handle) { *handle = &place; return answer(); }

DOES_NOTHING(cuInit)
DOES_NOTHING(cuCtxSetCurrent)
DOES_NOTHING(cuDevicePrimaryCtxRelease_v2)
DOES_NOTHING(cuMemFree_v2)
DOES_NOTHING(cuMemFreeHost)
DOES_NOTHING(cuMemcpyHtoDAsync_v2)
DOES_NOTHING(cuMemcpyDtoHAsync_v2)
DOES_NOTHING(cuMemcpyDtoDAsync_v2)
DOES_NOTHING(cuMemsetD8Async)
DOES_NOTHING(cuLaunchKernelEx)
DOES_NOTHING(cuFuncSetAttribute)
DOES_NOTHING(cuModuleUnload)
DOES_NOTHING(cuStreamSynchronize)
DOES_NOTHING(cuStreamDestroy_v2)
DOES_NOTHING(cuEventRecord)
DOES_NOTHING(cuEventSynchronize)
DOES_NOTHING(cuEventDestroy_v2)
GIVES_A_HANDLE(cuDevicePrimaryCtxRetain)
GIVES_A_HANDLE(cuStreamCreate)
GIVES_A_HANDLE(cuEventCreate)
GIVES_A_HANDLE(cuModuleLoadData)
GIVES_A_HANDLE(cuModuleGetFunction)

int cuDriverGetVersion(int *version) { *version = 12000; return answer(); }
int cuDeviceGetCount(int *count) { *count = 1; return answer(); }
int cuDeviceGet(int *device, int number) { *device = number; return answer(); }
int cuFuncGetAttribute(int *value) { *value = 0; return answer(); }
// The compute capability is 8.8, and so are all other numbers.
int cuDeviceGetAttribute(int *value) { *value = 8; return answer(); }
int cuDeviceGetName(char *name, int length) { strncpy(name, "played", length); return answer(); }
int cuDeviceGetUuid_v2(char *uuid) { memset(uuid, 7, 16); return answer(); }
int cuDeviceTotalMem_v2(size_t *bytes) { *bytes = (size_t)8 << 30; return answer(); }
int cuMemGetInfo_v2(size_t *free, size_t *total) { *free = (size_t)6 << 30; *total = (size_t)8 << 30; return answer(); }
// Nothing is ever written there.
int cuMemAlloc_v2(void **address, size_t bytes) { *address = malloc(bytes); return answer(); }
int cuMemHostAlloc(void **address, size_t bytes) { *address = malloc(bytes); return answer(); }
int cuGetErrorName(int error, const char **text) { *text = error ? "CUDA_ERROR_LAUNCH_FAILED" : "CUDA_SUCCESS"; return SUCCESS; }
int cuGetErrorString(int error, const char **text) { *text = error ? "a kernel failed" : "no error"; return SUCCESS; }

DOES_NOTHING(nvrtcCompileProgram)
DOES_NOTHING(nvrtcDestroyProgram)
DOES_NOTHING(nvrtcGetProgramLog)
GIVES_A_HANDLE(nvrtcCreateProgram)
int nvrtcVersion(int *major, int *minor) { *major = 13; *minor = 0; return SUCCESS; }
const char *nvrtcGetErrorString(int error) { return error ? "an error" : "no error"; }
int nvrtcGetNumSupportedArchs(int *count) { *count = 1; return SUCCESS; }
int nvrtcGetSupportedArchs(int *architectures) { *architectures = 88; return SUCCESS; }
int nvrtcGetProgramLogSize(void *program, size_t *bytes) { (void)program; *bytes = 0; return SUCCESS; }
int nvrtcGetCUBINSize(void *program, size_t *bytes) { (void)program; *bytes = 4; return SUCCESS; }
int nvrtcGetCUBIN(void *program, char *text) { (void)program; memcpy(text, "\177ELF", 4); return SUCCESS; }
