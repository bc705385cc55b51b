// A device guard for CUDA that does nothing: what the CPU wheel of PyTorch asks for before it touches a fake CUDA tensor.
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/FakeGuardImpl.h>
template <>
thread_local c10::DeviceIndex c10::impl::FakeGuardImpl<c10::DeviceType::CUDA>::current_device_ = 0;
C10_REGISTER_GUARD_IMPL(CUDA, c10::impl::FakeGuardImpl<c10::DeviceType::CUDA>);
