/* A stand-in for NVIDIA's driver, libcuda.so.1, for machines without one.
 *
 * It shows FAKE_GPUS devices (0 if unset) of compute capability FAKE_CAPABILITY ("8.6" if unset)
 * and CUDA version FAKE_CUDA (11080 for 11.8), or does not start at all, with FAKE_ERROR. No device computes: whatever MXNet's GPU wheel
 * links to besides is there to be found by the linker, and answers that there is no device.
 *
 *     gcc -shared -fPIC -o libcuda.so.1 fake_driver.c
 */
#include <stdio.h>
#include <stdlib.h>

#define NO_DEVICE 100 /* CUDA_ERROR_NO_DEVICE */

static const char *setting(const char *name, const char *otherwise) {
    const char *value = getenv(name);
    return value ? value : otherwise;
}

static int gpus(void) { return atoi(setting("FAKE_GPUS", "0")); }

int cuInit(unsigned flags) {
    int error = atoi(setting("FAKE_ERROR", "0"));
    return error ? error : gpus() ? 0 : NO_DEVICE;
}

int cuDriverGetVersion(int *version) {
    *version = atoi(setting("FAKE_CUDA", "11080"));
    return 0;
}

int cuDeviceGetCount(int *count) {
    *count = gpus();
    return 0;
}

int cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return ordinal < gpus() ? 0 : NO_DEVICE;
}

int cuDeviceGetName(char *name, int length, int device) {
    snprintf(name, length, "Fake GPU %d", device);
    return 0;
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    int major = 0, minor = 0;
    sscanf(setting("FAKE_CAPABILITY", "8.6"), "%d.%d", &major, &minor);
    *value = attribute == 75 ? major : attribute == 76 ? minor : 0;
    return device < gpus() ? 0 : NO_DEVICE;
}

#define ABSENT(function) \
    int function(void) { return NO_DEVICE; }
ABSENT(cuDevicePrimaryCtxRetain)
ABSENT(cuGetErrorString)
ABSENT(cuGraphKernelNodeGetParams)
ABSENT(cuGraphNodeGetType)
ABSENT(cuLaunchKernel)
ABSENT(cuModuleGetFunction)
ABSENT(cuModuleLoadData)
ABSENT(cuModuleLoadDataEx)
ABSENT(cuModuleUnload)
