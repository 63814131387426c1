// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package contract

// GuestRoot is the directory of the guest in which everything lies that requests name: bundles, mount
// points, copied files. The shim writes paths below it into requests; the agent refuses all others.
const GuestRoot = "/run/kata-containers"

// Names of directories directly below GuestRoot that containers of a pod have in common. Every other name
// there is a container's bundle, so the agent refuses them as container ids and admits requests to name
// paths below them.
const (
	SharedName  = "shared"
	SandboxName = "sandbox"
	ImageName   = "image"
	LayersName  = "virtual-volumes"
)

// FilesName is the path below GuestRoot of what the host copies or shares into the guest.
const FilesName = SharedName + "/containers"

// RootfsName is the directory of a bundle on which a container's root file system is mounted. The shim
// writes it into mount points, the agent into the specification for the OCI runtime.
const RootfsName = "rootfs"

// SandboxResolvConf is where the agent writes the pod's DNS lines beside /etc/resolv.conf, as Kata's does: a
// host may have it mounted into containers.
const SandboxResolvConf = SandboxDir + "/resolv.conf"

// Directories of the guest. The shim chooses paths in them for storages, mounts and copied files; the
// agent makes what a request names, and a policy may match them.
const (
	FilesDir    = GuestRoot + "/" + FilesName   // copied files and directories
	LayersDir   = GuestRoot + "/" + LayersName  // image layers, by root hash
	SandboxDir  = GuestRoot + "/" + SandboxName // what belongs to the pod
	ShmDir      = SandboxDir + "/shm"           // the pod's /dev/shm
	UpperDir    = SandboxDir + "/upper"         // writable layers, by container
	MemoryDir   = SandboxDir + "/ephemeral"     // volumes in the guest's memory
	StorageDir  = SandboxDir + "/storage"       // volumes on disks
	SubPathsDir = SandboxDir + "/subpaths"      // paths within volumes, by container
	LiveDir     = SandboxDir + "/live"          // directories that the host shares by virtio-fs
	ImagesDir   = SandboxDir + "/images"        // images that are volumes
	PulledDir   = SandboxDir + "/pulled"        // images that the guest has pulled, by the digits of their digests
)

// CgroupBase is the parent of the containers' cgroups in the guest. The shim writes paths below it into
// specifications, where a policy can match them; the agent uses its own even if a specification has others.
const CgroupBase = "/coco/"

// Bundle returns the directory of a container in the guest, where the agent keeps its OCI bundle.
func Bundle(id string) string { return GuestRoot + "/" + id }

// Pulled returns the place of an image that the guest has pulled, by the digest of its manifest, "sha256:…".
func Pulled(manifest string) string {
	const algorithm = "sha256:"
	if len(manifest) > len(algorithm) && manifest[:len(algorithm)] == algorithm {
		manifest = manifest[len(algorithm):]
	}
	return PulledDir + "/" + manifest
}

// Rootfs returns the mount point of a container's root file system.
func Rootfs(id string) string { return Bundle(id) + "/" + RootfsName }
