// What custom_ops.so was built for and from, legible in the file before it is loaded: build.py reads it to see
// whether anything changed, load() to refuse a library of another torch.
extern "C" __attribute__((used, visibility("default"))) const char custom_ops_build_stamp[] = CUSTOM_OPS_BUILD_STAMP;
