-- Wireshark dissector for the fabric's packets, version 1 (see wire-format.md).
-- Use: tshark -X lua_script:docs/fabric.lua …, or copy it into Wireshark's plugin folder.

local fabric = Proto("fabric", "MicroVM routing fabric")

local PORT = 7704
local HEADER_SIZE, RECORD_SIZE, MAX_RECORDS, ICV_SIZE = 40, 32, 16, 16
local NODE_SIZE, MAX_PATH = 4, 64
local PAYLOADS = { [4] = "IPv4", [41] = "IPv6", [253] = "announcement" }
local PROTOCOLS = { [0] = "shortest", [1] = "low-latency", [2] = "wide", [3] = "reliable",
  [4] = "disjoint", [5] = "disperse", [6] = "flood", [7] = "source", [8] = "deflect", [9] = "bounded", [10] = "avoid" }
local TREATMENTS = { [0] = "single", [1] = "replicated", [2] = "dispersed", [3] = "flooded" }

local f = fabric.fields
f.version = ProtoField.uint8("fabric.version", "Version", base.DEC, nil, 0xF0)
f.length = ProtoField.uint8("fabric.header_length", "Header length in 4-byte words", base.DEC, nil, 0x0F)
f.flags = ProtoField.uint8("fabric.flags", "Flags", base.HEX)
f.reply = ProtoField.bool("fabric.flags.reply", "Reply", 8, nil, 0x01)
f.overflow = ProtoField.bool("fabric.flags.overflow", "Record omitted: trace full", 8, nil, 0x02)
f.mtu = ProtoField.bool("fabric.flags.mtu", "Record omitted: no room in the MTU", 8, nil, 0x04)
f.authenticated = ProtoField.bool("fabric.flags.authenticated", "Authenticated", 8, nil, 0x08)
f.has_path = ProtoField.bool("fabric.flags.path", "Way fields and path", 8, nil, 0x10)
f.repaired = ProtoField.bool("fabric.flags.repaired", "Repaired on the way", 8, nil, 0x20)
f.protocol = ProtoField.uint8("fabric.protocol", "Routing protocol", base.DEC, PROTOCOLS)
f.hop_limit = ProtoField.uint8("fabric.hop_limit", "Hop limit", base.DEC)
f.payload_length = ProtoField.uint16("fabric.payload_length", "Payload length", base.DEC)
f.hop_count = ProtoField.uint8("fabric.hop_count", "Hop count", base.DEC)
f.payload_type = ProtoField.uint8("fabric.payload_type", "Payload type", base.DEC, PAYLOADS)
f.connection = ProtoField.uint64("fabric.connection", "Connection", base.HEX)
f.source = ProtoField.uint32("fabric.source", "Source node", base.DEC)
f.destination = ProtoField.uint32("fabric.destination", "Destination node", base.DEC)
f.sequence = ProtoField.uint64("fabric.sequence", "Sequence", base.DEC)
f.key_id = ProtoField.uint16("fabric.key_id", "Authentication key", base.DEC)
f.path_number = ProtoField.uint8("fabric.path_number", "Path number", base.DEC)
f.path_length = ProtoField.uint8("fabric.path_length", "Path length", base.DEC)
f.treatment = ProtoField.uint8("fabric.treatment", "Treatment", base.DEC, TREATMENTS)
f.reply_difference = ProtoField.uint8("fabric.reply_difference", "Reply protocol XOR protocol", base.HEX)
f.path = ProtoField.none("fabric.path", "Explicit path")
f.path_node = ProtoField.uint32("fabric.path.node", "Node", base.DEC)
f.extension = ProtoField.bytes("fabric.extension", "Header extension")
f.payload = ProtoField.bytes("fabric.payload", "Payload")
f.record = ProtoField.none("fabric.record", "Hop record")
f.node = ProtoField.uint32("fabric.record.node", "Node", base.DEC)
f.guest = ProtoField.uint16("fabric.record.guest", "Guest", base.DEC)
f.ingress = ProtoField.uint16("fabric.record.ingress_interface", "Ingress interface", base.DEC)
f.egress = ProtoField.uint16("fabric.record.egress_interface", "Egress interface", base.DEC)
f.received = ProtoField.uint64("fabric.record.received_at_us", "Received at (Unix µs)", base.DEC)
f.residence = ProtoField.uint32("fabric.record.residence_us", "Residence (µs)", base.DEC)
f.queue = ProtoField.uint16("fabric.record.queue_depth", "Queue depth", base.DEC)
f.table = ProtoField.uint32("fabric.record.table_version", "Table version", base.DEC)
f.spawn = ProtoField.uint32("fabric.record.spawn_ms", "Guest appeared in (ms)", base.DEC)

local malformed = ProtoExpert.new("fabric.malformed", "Malformed fabric packet", expert.group.MALFORMED, expert.severity.ERROR)
fabric.experts = { malformed }

local ip = Dissector.get("ip")
local ipv6 = Dissector.get("ipv6")

local function reject(tree, reason)
  tree:add_proto_expert_info(malformed, reason)
end

local function dissect_record(tree, range, number)
  local node = range(0, 4):uint()
  local branch = tree:add(f.record, range)
  branch:set_text("Hop record " .. number .. ": node " .. node)
  branch:add(f.node, range(0, 4))
  branch:add(f.guest, range(4, 2))
  branch:add(f.ingress, range(6, 2))
  branch:add(f.egress, range(8, 2))
  branch:add(f.received, range(10, 8))
  branch:add(f.residence, range(18, 4))
  branch:add(f.queue, range(22, 2))
  branch:add(f.table, range(24, 4))
  branch:add(f.spawn, range(28, 4))
end

local function dissect_header(tree, buffer)
  tree:add(f.version, buffer(0, 1))
  tree:add(f.length, buffer(0, 1))
  local flags = tree:add(f.flags, buffer(1, 1))
  for _, bit in ipairs({ f.reply, f.overflow, f.mtu, f.authenticated, f.has_path, f.repaired }) do
    flags:add(bit, buffer(1, 1))
  end
  tree:add(f.protocol, buffer(2, 1))
  tree:add(f.hop_limit, buffer(3, 1))
  tree:add(f.payload_length, buffer(4, 2))
  tree:add(f.hop_count, buffer(6, 1))
  tree:add(f.payload_type, buffer(7, 1))
  tree:add(f.connection, buffer(8, 8))
  tree:add(f.source, buffer(16, 4))
  tree:add(f.destination, buffer(20, 4))
  tree:add(f.sequence, buffer(24, 8))
  tree:add(f.key_id, buffer(32, 2))
  tree:add(f.path_number, buffer(34, 1))
  tree:add(f.path_length, buffer(35, 1))
  tree:add(f.treatment, buffer(36, 1))
  tree:add(f.reply_difference, buffer(37, 1))
end

local function dissect_path(tree, range)
  local branch, nodes = tree:add(f.path, range), {}
  for at = 0, range:len() - NODE_SIZE, NODE_SIZE do
    branch:add(f.path_node, range(at, NODE_SIZE))
    nodes[#nodes + 1] = tostring(range(at, NODE_SIZE):uint())
  end
  branch:set_text("Explicit path: " .. table.concat(nodes, ", "))
end

function fabric.dissector(buffer, pinfo, root)
  local tree = root:add(fabric, buffer())
  if buffer:len() < HEADER_SIZE then return reject(tree, "shorter than the fixed header") end
  if buffer(0, 1):bitfield(0, 4) ~= 1 then return reject(tree, "unknown version") end
  dissect_header(tree, buffer)
  local header = buffer(0, 1):bitfield(4, 4) * 4
  local least = HEADER_SIZE
  if buffer(1, 1):bitfield(4, 1) == 1 then least = HEADER_SIZE + ICV_SIZE end
  if header < least then return reject(tree, "header length too small") end
  local payload, hops = buffer(4, 2):uint(), buffer(6, 1):uint()
  if hops > MAX_RECORDS then return reject(tree, "more records than the format allows") end
  if header + payload + hops * RECORD_SIZE ~= buffer:len() then
    return reject(tree, "lengths do not add up to the datagram")
  end
  local explicit = 0
  if buffer(1, 1):bitfield(3, 1) == 1 then explicit = buffer(35, 1):uint() * NODE_SIZE end
  if explicit > MAX_PATH * NODE_SIZE then return reject(tree, "path longer than the format allows") end
  if explicit > payload then return reject(tree, "path longer than the payload") end
  local path = {}
  if header > HEADER_SIZE then tree:add(f.extension, buffer(HEADER_SIZE, header - HEADER_SIZE)) end
  if explicit > 0 then dissect_path(tree, buffer(header, explicit)) end
  local inner, inside = header + explicit, payload - explicit
  if inside > 0 then tree:add(f.payload, buffer(inner, inside)) end
  for number = 1, hops do
    local range = buffer(header + payload + (number - 1) * RECORD_SIZE, RECORD_SIZE)
    dissect_record(tree, range, number)
    path[number] = tostring(range(0, 4):uint())
  end
  local kind = buffer(7, 1):uint()
  if inside > 0 and kind == 4 then ip:call(buffer(inner, inside):tvb(), pinfo, root) end
  if inside > 0 and kind == 41 then ipv6:call(buffer(inner, inside):tvb(), pinfo, root) end
  pinfo.cols.protocol = "FABRIC"
  pinfo.cols.info:prepend(string.format("[%d→%d protocol %d via %s] ", buffer(16, 4):uint(),
    buffer(20, 4):uint(), buffer(2, 1):uint(), table.concat(path, ",")))
end

DissectorTable.get("udp.port"):add(PORT, fabric)
