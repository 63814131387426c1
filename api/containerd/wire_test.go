// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"fmt"
	"testing"

	"github.com/containerd/containerd/api/events"
	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/runtime/task/v2"
	ttrpcevents "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/runtimeoptions/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// leftOut are fields of containerd's that the shim neither sends nor reads.
var leftOut = map[string]bool{
	"RuntimeInfo.options": true, "RuntimeInfo.features": true, "RuntimeInfo.annotations": true,
	"BootstrapResult.capabilities": true, "BootstrapResult.metadata": true, "BootstrapResult.extensions": true,
}

// theirs has containerd's files with the messages that ours stand for.
func theirs() map[protoreflect.Name]protoreflect.MessageDescriptor {
	out := map[protoreflect.Name]protoreflect.MessageDescriptor{}
	for _, f := range []protoreflect.FileDescriptor{
		task.File_runtime_task_v2_shim_proto, events.File_events_task_proto, types.File_types_mount_proto,
		types.File_types_event_proto, types.File_types_introspection_proto, tasktypes.File_types_task_task_proto,
		ttrpcevents.File_services_ttrpc_events_v1_events_proto, bootapi.File_runtime_bootstrap_v1_bootstrap_proto,
	} {
		for i := range f.Messages().Len() {
			m := f.Messages().Get(i)
			out[m.Name()] = m
		}
	}
	out["RuntimeOptions"] = (&runtimeoptions.Options{}).ProtoReflect().Descriptor()
	return out
}

// describe is what of a field reaches the wire.
func describe(f protoreflect.FieldDescriptor) string {
	text := fmt.Sprintf("%s = %d %s %s", f.Name(), f.Number(), f.Cardinality(), f.Kind())
	switch {
	case f.IsMap():
		return fmt.Sprintf("%s map<%s, %s>", text, f.MapKey().Kind(), f.MapValue().Kind())
	case f.Message() != nil:
		return text + " " + string(f.Message().Name())
	case f.Enum() != nil:
		for i := range f.Enum().Values().Len() {
			v := f.Enum().Values().Get(i)
			text += fmt.Sprintf(" %s=%d", v.Name(), v.Number())
		}
	}
	return text
}

// Every message is containerd's, field by field.
func TestOurMessagesAreContainerds(t *testing.T) {
	want := theirs()
	messages := File_coco_containerd_v1_shim_proto.Messages()
	for i := range messages.Len() {
		ours := messages.Get(i)
		m := want[ours.Name()]
		if m == nil {
			t.Errorf("containerd has no message %s", ours.Name())
			continue
		}
		for j := range ours.Fields().Len() {
			f := ours.Fields().Get(j)
			other := m.Fields().ByNumber(f.Number())
			if other == nil || describe(f) != describe(other) {
				t.Errorf("%s.%s is %s, containerd's %v", ours.Name(), f.Name(), describe(f), other)
			}
		}
		for j := range m.Fields().Len() {
			f := m.Fields().Get(j)
			name := fmt.Sprintf("%s.%s", ours.Name(), f.Name())
			if ours.Fields().ByNumber(f.Number()) == nil && !leftOut[name] {
				t.Errorf("%s is missing", name)
			}
		}
	}
}
