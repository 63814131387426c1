// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package policy says what a pod may do in its guest. The pod's owner writes a Policy and puts it as the file
// "policy.coco" into initdata, whose digest the launch measures. The host brings the bytes and cannot change them. The
// agent asks the policy before it handles a request; the shim, the generator and the simulator ask the same code.
//
// This part of the package is the data model, its encoding and its checks. It holds these facts:
//
//   - A policy is canonical JSON: the bytes that Encode writes, and no others. Load takes only these; Parse takes any
//     spacing and order as well, for tools. Both refuse an unknown, repeated or null member, and a value that Validate
//     refuses. Absent and zero are the same, and Encode leaves zero values out.
//   - The zero value allows nothing. An empty list means "none", never "any".
//   - Members pin exactly: nothing missing, nothing more. An entry with Optional may be missing.
//   - A container of a request belongs to the policy's container that all its fields match. Names, tags and
//     annotations alone never decide.
//   - Ids are the host's: of the sandbox, of containers, of execs. Only their syntax, uniqueness and order are
//     checked. Paths of the guest that follow from an id (root file system, cgroup, copies) are computed, so a policy
//     does not hold them.
//   - Addresses of devices are the host's as well. A layer counts by its root hash, a disk by the guest's own key.
//   - Limits of memory, CPU and processes, sizes of tmpfs and oomScoreAdj are not pinned: the host decides about
//     availability anyway.
//
// The package is pure: no files, no network, no clock, no environment.
package policy

import "github.com/coco-shim/coco/internal/initdata"

// APIVersion is the version of the format that this package reads and writes. A policy of another version is refused.
const APIVersion = "coco.policy/v1"

// FileName is the name of the policy among the files of initdata.
const FileName = initdata.FilePolicy

// Policy is all that a pod may do.
type Policy struct {
	APIVersion string      `json:"apiVersion"`
	Pod        Pod         `json:"pod"`
	Containers []Container `json:"containers,omitempty"` // init containers in their order, before the others
	Volumes    []Volume    `json:"volumes,omitempty"`
}

// Pod is what the containers have in common.
type Pod struct {
	Hostname Value             `json:"hostname"`
	Sysctls  map[string]string `json:"sysctls,omitempty"` // of the sandbox
	DNS      DNS               `json:"dns,omitzero"`
	Network  Network           `json:"network,omitzero"`
	// SharedShm admits the pod's own /dev/shm, a tmpfs that the sandbox makes.
	SharedShm bool `json:"sharedShm,omitempty"`
	// PortForward has the TCP ports of the guest's loopback address to which the host may connect.
	PortForward []uint16 `json:"portForward,omitempty"`
	// WorkloadPort is the TCP port of the guest's loopback address on which containers reach the workload API; 0: none.
	WorkloadPort uint16 `json:"workloadPort,omitempty"`
	// Sealed has the signers of the sealed secrets that the guest opens.
	Sealed Sealed `json:"sealed,omitzero"`
	Copy   bool   `json:"copy,omitempty"`  // files may be copied to places that no mount of the policy names
	Debug  bool   `json:"debug,omitempty"` // containers may be added that the policy does not declare
	Stats  bool   `json:"stats,omitempty"` // statistics, metrics, OOM events, log of decisions
}

// DNS says which lines of resolv.conf the sandbox may be told.
type DNS struct {
	FromHost bool     `json:"fromHost,omitempty"` // any name server, search domain and option
	Lines    []string `json:"lines,omitempty"`    // exactly these
}

// Network says what the host may configure.
type Network struct {
	Interfaces []Interface `json:"interfaces,omitempty"`
	Routes     bool        `json:"routes,omitempty"`     // routes and rules, but none of the loopback device
	Neighbours bool        `json:"neighbours,omitempty"` // entries of the ARP table
}

// Interface is a network interface of the guest.
type Interface struct {
	Name string `json:"name"`
	// Addresses with their prefix lengths; none: the host chooses them. Loopback addresses are refused in any case.
	Addresses []string `json:"addresses,omitempty"`
}

// Kinds of containers.
const (
	App     = "app"     // starts when all init containers are through
	Init    = "init"    // has to exit with 0 before the next container is created
	Sidecar = "sidecar" // an init container that has to be started, not to exit, before the next one is created
)

// Values of Container.Restart, as Kubernetes spells them. They say when a container that has exited may be created
// again.
const (
	Never     = "Never"
	OnFailure = "OnFailure"
	Always    = "Always"
)

// Container is one declared container. At most one instance of it lives at a time.
type Container struct {
	Name        string       `json:"name"`
	Kind        string       `json:"kind"`
	Restart     string       `json:"restart"`
	Image       Image        `json:"image"`
	Process     Process      `json:"process"`
	Linux       Linux        `json:"linux"`
	ReadonlyRfs bool         `json:"readonlyRootfs,omitempty"`
	Mounts      []Mount      `json:"mounts,omitempty"` // in their order
	Disks       []string     `json:"disks,omitempty"`  // paths in the container of raw block volumes
	Annotations []Annotation `json:"annotations,omitempty"`
	Hostname    bool         `json:"hostname,omitempty"` // the sandbox's host name is repeated; else there is none
	Secrets     []Secret     `json:"secrets,omitempty"`
	Allow       Capabilities `json:"allow,omitzero"`
	Workload    Workload     `json:"workload,omitzero"`
}

// Secret is a secret of the pod's key broker that the agent gets before it creates the container: as a file or as an
// environment variable. Exactly one of File and Env is set.
type Secret struct {
	Resource string `json:"resource"` // kbs:///repository/type/tag
	// Sealed says that the host brings a sealed text (docs/secrets.md) as the value of the variable Env of Process, or as
	// the file File of a mount that is copied. The guest opens it and puts the secret in its place. Resource is the only
	// one that the text may name. Mode is then empty: the file keeps the one that it has.
	Sealed bool `json:"sealed,omitempty"`
	// File is the path in the container of a file in the guest's memory, which belongs to the first process's user.
	File string `json:"file,omitempty"`
	Mode string `json:"mode,omitempty"` // of the file: octal digits without a leading zero; "": SecretMode
	// Renew has the agent ask for the secret again and replace the file: at this interval, such as "1h", and, like
	// RenewOnRequest, when the container makes the call CallRenew. The file's directory is then a mount of its own, and
	// has renewed files only.
	Renew string `json:"renew,omitempty"`
	// Env is the name of a variable of the first process. Its value is the secret, byte by byte, and must be text. Other
	// processes that are executed in the container do not get it.
	Env string `json:"env,omitempty"`
}

// SecretMode is the mode of a secret's file that names none: its owner may read it.
const SecretMode = "400"

// Image identifies an image by what the guest can verify.
type Image struct {
	// Manifest is the digest of the platform's manifest, "sha256:…", never that of an index. It is for people and tools;
	// the guest checks Layers, which follow from it.
	Manifest string `json:"manifest"`
	// Layers has the dm-verity root hashes, 64 hexadecimal digits each, the topmost layer first.
	Layers []string `json:"layers"`
	// Pull is the repository, as "registry.example/team/app", from which the guest pulls the image by Manifest. "": the
	// host brings the layers. The guest mounts no others than Layers in either case.
	Pull string `json:"pull,omitempty"`
	// Keys has the keys of the pod's key broker (kbs:///repository/type/tag) with which the guest may decrypt the image
	// that it pulls.
	Keys []string `json:"keys,omitempty"`
	// SignedBy lets the guest run a later image than Manifest: the one that the registry has under Tag, if this key has
	// signed it for the repository. It is a public key, P-256, P-384, RSA or Ed25519: base64 of its PKIX form. Manifest
	// and Layers then say no more than for which image the policy was written, and name the request of the host.
	SignedBy string `json:"signedBy,omitempty"`
	Tag      string `json:"tag,omitempty"`
	// MinVersion refuses images whose org.opencontainers.image.version is older: numbers with dots. "": any.
	MinVersion string `json:"minVersion,omitempty"`
}

// Source is what a guest pulls: the repository and the digest of the manifest. It is "" for an image of the host's.
func (i Image) Source() string {
	if i.Pull == "" {
		return ""
	}
	return i.Pull + "@" + i.Manifest
}

// Process is the first process of a container.
type Process struct {
	Args            []string `json:"args"`
	Env             []Env    `json:"env,omitempty"`
	Cwd             string   `json:"cwd"`
	User            User     `json:"user"`
	Caps            Caps     `json:"caps,omitzero"`
	NoNewPrivileges bool     `json:"noNewPrivileges,omitempty"`
	Rlimits         Rlimits  `json:"rlimits,omitzero"`
	TTY             bool     `json:"tty,omitempty"`
}

// User is what a process runs as. Groups has the additional ones, in any order.
type User struct {
	UID    uint32   `json:"uid"`
	GID    uint32   `json:"gid"`
	Groups []uint32 `json:"groups,omitempty"`
}

// Caps are the capability sets, each in any order.
type Caps struct {
	Bounding    []string `json:"bounding,omitempty"`
	Effective   []string `json:"effective,omitempty"`
	Inheritable []string `json:"inheritable,omitempty"`
	Permitted   []string `json:"permitted,omitempty"`
	Ambient     []string `json:"ambient,omitempty"`
}

// Rlimits are resource limits, in any order.
type Rlimits struct {
	// FromHost admits limits of types that Limits does not name: the shim adds the host's defaults.
	FromHost bool     `json:"fromHost,omitempty"`
	Limits   []Rlimit `json:"limits,omitempty"`
}

// Rlimit is a resource limit, of a type such as "RLIMIT_NOFILE".
type Rlimit struct {
	Type string `json:"type"`
	Soft uint64 `json:"soft"`
	Hard uint64 `json:"hard"`
}

// Env is an environment variable. Order has no meaning; a variable that comes twice is refused. PATH and LD_* take a
// literal value only. Variables that kubelet makes for services (FOO_SERVICE_HOST, FOO_PORT_80_TCP_ADDR, …) and that
// no entry names are removed by the agent before the process gets them.
type Env struct {
	Name string `json:"name"`
	Value
	Optional bool `json:"optional,omitempty"`
}

// Annotation is an annotation of the OCI specification.
type Annotation struct {
	Key string `json:"key"`
	Value
	Optional bool `json:"optional,omitempty"`
}

// Value says which texts are allowed. Exactly one member is set.
type Value struct {
	Is    *string  `json:"is,omitempty"`    // this text
	OneOf []string `json:"oneOf,omitempty"` // one of these texts
	Type  string   `json:"type,omitempty"`  // a text of this syntax: a Type… constant
	// Field names a fact of the pod that is known to the host only: a Field… constant. The first text of the right syntax
	// is taken for it; from then on the field has this value in all places of the pod.
	Field string `json:"field,omitempty"`
}

// Syntaxes of Value.Type.
const (
	TypeAny    = "any"    // any text without control characters; lint warns of it
	TypeIP     = "ip"     // an IPv4 or IPv6 address
	TypeIPs    = "ips"    // addresses, separated by commas
	TypePort   = "port"   // 1 to 65535
	TypeNumber = "number" // decimal digits, perhaps a sign
	TypeName   = "name"   // a DNS name (RFC 1123)
	TypeID     = "id"     // what containerd takes for an id
	TypeUUID   = "uuid"
	TypeURL    = "url"    // scheme://address:port, as kubelet writes for services
	TypeSealed = "sealed" // a sealed text, for variables that an entry of Secrets opens
)

// Fields of Value.Field.
const (
	FieldHostname     = "hostname" // as the sandbox was told
	FieldPodName      = "podName"
	FieldPodNamespace = "podNamespace"
	FieldPodUID       = "podUID"
	FieldPodIP        = "podIP"
	FieldPodIPs       = "podIPs"
	FieldHostIP       = "hostIP"
	FieldHostIPs      = "hostIPs"
	FieldNodeName     = "nodeName"
	FieldSandboxID    = "sandboxID" // as the sandbox was told
)

// Linux is the linux section of the OCI specification.
type Linux struct {
	// Namespaces has the types that the specification lists, in any order, none with a path: the shim sends "mount", "ipc"
	// and "uts".
	Namespaces []string          `json:"namespaces"`
	PIDs       string            `json:"pids,omitempty"` // "": its own; PodPIDs; or a container whose processes it sees
	Sysctls    map[string]string `json:"sysctls,omitempty"`
	Masked     Paths             `json:"masked,omitzero"`
	Readonly   Paths             `json:"readonly,omitzero"`
	Devices    []Device          `json:"devices,omitempty"`     // nodes, in any order
	DeviceRule []DeviceRule      `json:"deviceRules,omitempty"` // of the cgroup, in their order
	// Seccomp has the digests, by SeccompDigest, of the filters that are allowed; NoSeccomp stands for none at all.
	Seccomp     []string `json:"seccomp"`
	Propagation string   `json:"propagation,omitempty"` // of the root file system
}

// PodPIDs is the value of Linux.PIDs for a container in the process namespace that the pod shares.
const PodPIDs = "pod"

// NoSeccomp stands in Linux.Seccomp for a container without a filter.
const NoSeccomp = "none"

// Paths are paths in a container that the runtime masks or makes read-only. Releases of containerd differ in them.
type Paths struct {
	Required []string `json:"required,omitempty"`
	Optional []string `json:"optional,omitempty"`
}

// Device is a device node in a container.
type Device struct {
	Path  string `json:"path"`
	Type  string `json:"type"`
	Major int64  `json:"major"`
	Minor int64  `json:"minor"`
	Mode  uint32 `json:"mode"`
	UID   uint32 `json:"uid,omitempty"`
	GID   uint32 `json:"gid,omitempty"`
}

// DeviceRule is a rule of the device cgroup. Major and minor are -1 for every number.
type DeviceRule struct {
	Allow  bool   `json:"allow,omitempty"`
	Type   string `json:"type,omitempty"`
	Major  int64  `json:"major"`
	Minor  int64  `json:"minor"`
	Access string `json:"access,omitempty"`
}

// Mount is a mount of a container. All members are compared together.
type Mount struct {
	Destination string   `json:"destination"`
	Type        string   `json:"type"`
	Options     []string `json:"options,omitempty"` // in their order
	Source      Source   `json:"source"`
	Optional    bool     `json:"optional,omitempty"`
}

// Source is where a mount comes from. Exactly one member is set.
type Source struct {
	Is     *string  `json:"is,omitempty"`     // this word: "proc", "tmpfs"
	Shm    bool     `json:"shm,omitempty"`    // the pod's /dev/shm
	Copy   *Content `json:"copy,omitempty"`   // a file or directory of the host, copied for this container
	Volume *Use     `json:"volume,omitempty"` // a volume of the pod
}

// Use is a use of a volume.
type Use struct {
	Name    string `json:"name"`
	SubPath string `json:"subPath,omitempty"` // a path within it, which the guest resolves
}

// Kinds of volumes.
const (
	VolumeCopy   = "copy"   // files of the host, copied for the pod and kept up to date
	VolumeMemory = "memory" // a tmpfs
	VolumeDisk   = "disk"   // a new disk that the guest encrypts with a key that it makes and forgets
	VolumeImage  = "image"  // an image, read-only
	VolumeHost   = "host"   // a file system on a disk of the host, which a TEE refuses
)

// Volume is a volume of the pod, which containers mount by its name. Its path in the guest is the host's choice within
// the directory for its kind; two volumes never have the same one.
type Volume struct {
	Name    string   `json:"name"`
	Kind    string   `json:"kind"`
	Mode    string   `json:"mode,omitempty"`    // of memory and disk: octal, as mount(8) writes it
	GID     uint32   `json:"gid,omitempty"`     // of memory, disk and host: the group that owns it
	Layers  []string `json:"layers,omitempty"`  // of an image, as in Image
	FSType  string   `json:"fsType,omitempty"`  // of host
	Options []string `json:"options,omitempty"` // of host: mount options, in their order
	Content *Content `json:"content,omitempty"` // of a copy
}

// Rules of Content.
const (
	ContentDigest   = "digest"   // exactly Files, each with its digest
	ContentSigned   = "signed"   // files with a signature by one of Keys and a counter that rises
	ContentUnpinned = "unpinned" // whatever the host sends; lint warns of it
)

// Content says which bytes the host may copy into a mount or volume, at first and as updates.
type Content struct {
	Rule  string   `json:"rule"`
	Files []File   `json:"files,omitempty"`
	Keys  []string `json:"keys,omitempty"` // public keys, P-256 or Ed25519: base64 of their PKIX form
	// Counter is the lowest that a signature may have: it keeps older ones out, which a guest that has just started knows
	// nothing of.
	Counter uint64 `json:"counter,omitempty"`
}

// File is a file of a copied mount or volume. Path is relative to it; of a mount that is a single file it is ".".
type File struct {
	Path   string `json:"path"`
	SHA256 string `json:"sha256"` // 64 hexadecimal digits
}

// Capabilities open what the host may do with a running container. Each opens all of its calls.
type Capabilities struct {
	Exec  Exec `json:"exec,omitzero"`
	Logs  bool `json:"logs,omitempty"`  // reading its output, its exit's termination message
	Stdin bool `json:"stdin,omitempty"` // writing to its input
}

// Exec says which further processes may run. They have the container's user, capabilities, directory, environment and
// limits. Probes and hooks of a pod are commands like others.
type Exec struct {
	Any      bool      `json:"any,omitempty"`
	Commands []Command `json:"commands,omitempty"`
}

// Command is a command line, exactly.
type Command struct {
	Args []string `json:"args"`
	TTY  bool     `json:"tty,omitempty"`
}
