// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package contract

// Drivers of storages, most of them Kata's. The shim writes them into Storage.driver, and the first three
// into Device.type as well; the agent looks them up and lists those it has in GetGuestDetails.
const (
	DriverBlk           = "blk"            // virtio-blk disk; the source is its PCI path
	DriverMMIOBlk       = "mmioblk"        // virtio-blk disk; the source is its name, "/dev/vda"
	DriverSCSI          = "scsi"           // SCSI disk; the source is "target:lun"
	DriverEphemeral     = "ephemeral"      // tmpfs
	DriverLocal         = "local"          // directory on the guest's own memory
	DriverOverlay       = "overlayfs"      // overlay of directories that other storages have mounted
	DriverBind          = "bind"           // bind mount of a directory or file of the guest
	DriverWatchableBind = "watchable-bind" // bind mount of what the host changes later
	DriverVirtioFS      = "virtio-fs"      // directory of the host; the source is the device's tag
	// DriverPull is an image that the guest pulls; the source is its repository and the digest of its manifest. It has no
	// options: where and how the guest pulls is in the pod's initdata.
	DriverPull = "image_guest_pull"
)

// Driver options that carry the parameters of a dm-verity layer, as "name=value" on a disk that holds an
// erofs image. Package image/verity writes and parses them for both sides.
const (
	VerityPrefix     = "coco.verity." // any option that begins so is one of them
	VerityRootHash   = VerityPrefix + "root_hash"
	VeritySalt       = VerityPrefix + "salt"
	VerityDataBlocks = VerityPrefix + "data_blocks"
	VerityHashOffset = VerityPrefix + "hash_offset"
)

// Other driver options. The shim writes them, the agent obeys them or refuses the storage.
const (
	// OptionCreateDirectory, followed by a path, has the overlay driver make that directory first. It is
	// Kata's.
	OptionCreateDirectory = "io.katacontainers.volume.overlayfs.create_directory="
	// OptionEphemeralKey has a disk encrypted with a key that the guest makes and does not keep. It is
	// Kata's, and valid only together with OptionCreateFS.
	OptionEphemeralKey = "encryption_key=ephemeral"
	// OptionCreateFS has a file system made on a disk.
	OptionCreateFS = "create_filesystem"
	// OptionSubPath, followed by a path, has the bind driver mount that path within the source; it is
	// resolved in the guest, and a directory is made if there is nothing.
	OptionSubPath = "coco.subpath="
)
