// Scratch memory that a thread keeps from call to call.
#ifndef FASTUNLEARN_CPU_ROOM_H_
#define FASTUNLEARN_CPU_ROOM_H_

#include <memory>

namespace fastunlearn {

// The calling thread's own Room, uninitialised, made on first use: less than 1 MiB of buffers in
// all, which would otherwise cost each call an allocation and its page faults.
template <class Room>
Room& thread_room() {
  static thread_local const std::unique_ptr<Room> room(new Room);
  return *room;
}

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CPU_ROOM_H_
