// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package task

import (
	"github.com/containerd/ttrpc"

	"github.com/coco-shim/coco/shim/rpc"
)

// The two generations of containerd's task API differ in nothing but the name: the messages are the
// same on the wire.
var serviceNames = []string{"containerd.task.v2.Task", "containerd.task.v3.Task"}

// Register adds the task service to a server, under both its names.
func (s *Service) Register(server *ttrpc.Server) {
	methods := methodsOf(s)
	for _, name := range serviceNames {
		server.RegisterService(name, &ttrpc.ServiceDesc{Methods: methods})
	}
}

func methodsOf(s *Service) map[string]ttrpc.Method {
	return map[string]ttrpc.Method{
		"State":      rpc.Unary(s.State),
		"Create":     rpc.Unary(s.Create),
		"Start":      rpc.Unary(s.Start),
		"Delete":     rpc.Unary(s.Delete),
		"Pids":       rpc.Unary(s.Pids),
		"Pause":      rpc.Unary(s.Pause),
		"Resume":     rpc.Unary(s.Resume),
		"Checkpoint": rpc.Unary(s.Checkpoint),
		"Kill":       rpc.Unary(s.Kill),
		"Exec":       rpc.Unary(s.Exec),
		"ResizePty":  rpc.Unary(s.ResizePty),
		"CloseIO":    rpc.Unary(s.CloseIO),
		"Update":     rpc.Unary(s.Update),
		"Wait":       rpc.Unary(s.Wait),
		"Stats":      rpc.Unary(s.Stats),
		"Connect":    rpc.Unary(s.Connect),
		"Shutdown":   rpc.Unary(s.Shutdown),
	}
}
