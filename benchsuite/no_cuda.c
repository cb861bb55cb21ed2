/* Stands in for the CUDA driver on a machine that has none. NIXL's LIBFABRIC plugin links to these three
 * functions and, for host memory, only needs them to exist; each says "no device" (CUDA_ERROR_NO_DEVICE). */

enum { NO_DEVICE = 100 };

int cuCtxSetCurrent(void *context) { (void)context; return NO_DEVICE; }

int cuDeviceGetPCIBusId(char *text, int bytes, int device) {
    (void)text, (void)bytes, (void)device;
    return NO_DEVICE;
}

int cuPointerGetAttributes(unsigned count, void *attributes, void **values, unsigned long long pointer) {
    (void)count, (void)attributes, (void)values, (void)pointer;
    return NO_DEVICE;
}
