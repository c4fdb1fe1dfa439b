// Scratch memory that a thread keeps from call to call.
#ifndef FASTUNLEARN_CPU_ROOM_H_
#define FASTUNLEARN_CPU_ROOM_H_

#include <memory>
#include <vector>

namespace fastunlearn {

// The calling thread's own Room, uninitialised, made on first use: less than 1 MiB of buffers in
// all, which would otherwise cost each call an allocation and its page faults.
template <class Room>
Room& thread_room() {
  static thread_local const std::unique_ptr<Room> room(new Room);
  return *room;
}

// A Room for each of `threads` workers, kept by the calling thread. All are there before the
// workers begin: a loop that writes weights must not run out of memory half-way.
template <class Room>
const std::vector<std::unique_ptr<Room>>& worker_rooms(int threads) {
  static thread_local std::vector<std::unique_ptr<Room>> rooms;
  const auto wanted = static_cast<size_t>(threads);
  rooms.reserve(wanted);
  while (rooms.size() < wanted) rooms.emplace_back(new Room);
  return rooms;
}

}  // namespace fastunlearn

#endif  // FASTUNLEARN_CPU_ROOM_H_
