// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package second is not built: it spells values of the contract as TestASecondSpellingIsFound expects.
package second

import (
	"errors"
	"net"
)

const root = "/run/kata-containers" // want GuestRoot

var (
	below    = root + "/sandbox/shm/x"             // want ShmDir
	message  = `mount on "/run/kata-containers": ` // want GuestRoot
	longer   = "/run/kata-containers-x"
	agePort  = 1024 // want PortAgent
	buffer   = make([]byte, 1024)
	decimal  = 1 << 10
	device   = "virtserialport,name=org.coco.agent" // want SerialPort
	ports    = map[uint32]bool{1027: true}          // want PortStreams
	log      = []byte("quiet agent.log=debug")      // want ParamLog
	package_ = "agent.logger"
	features = "coco-streams,coco-rules"                      // want FeatureStreams
	key      = "io.kubernetes.cri.sandbox-id"                 // want CRISandboxID
	prefix   = "io.kubernetes.cri." + key                     // want criPrefix
	json     = `{"io.katacontainers.config.agent.policy":""}` // want KataPolicy
	other    = "io.kubernetes.crime"
	sections = []string{"rootfs"} // want SectionRootfs
	names    = []string{"rootfs"}
)

type storage struct{ Driver, Type string }

var bind = storage{
	Driver: "bind", // want DriverBind
	Type:   "bind",
}

// Drivers lists drivers.
func Drivers() []string { return []string{"scsi"} } // want DriverSCSI

func check(s storage, options []string) error {
	if s.Driver != "ephemeral" { // want DriverEphemeral
		return errors.New("no ephemeral storage")
	}
	switch s.Driver {
	case "local", "overlayfs": // want DriverLocal, DriverOverlay
		return errors.New("local")
	}
	if options[0] == "coco.verity.salt=00" { // want VeritySalt
		return errors.New("coco.verity." + options[1]) // want VerityPrefix
	}
	if options[0] == "coco.subpath="+s.Type { // want OptionSubPath
		return errors.New("coco.subpaths")
	}
	return nil
}

func connect(vm interface {
	Dial(port int) (net.Conn, error)
	Read(n int) error
}, port int,
) (net.Conn, error) {
	switch port {
	case 1027: // want PortStreams
		return nil, vm.Read(1027)
	}
	if port == 1024 && vm.Read(1024) == nil { // want PortAgent
		return nil, nil
	}
	return vm.Dial(1028) // want PortForward
}
