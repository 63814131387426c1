// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package frontends

import "github.com/coco-shim/coco/api/contract"

// limits are of memory, processors, processes and disks.
func limits() []Action {
	return []Action{
		{Name: "`--memory`: killed, 137", Script: `once --memory 64m $I sh -c 'head -c 300m /dev/zero | tail >/dev/null; exit $?'`},
		{Name: "`--memory`: `OOMKilled` in `inspect`", Script: `new one --memory 64m $I sh -c 'x=a; while :; do x=$x$x; done'; e wait one; e inspect -f '{{.State.OOMKilled}}' one`},
		{Name: "`--memory 20m`, a small limit", Script: `once --memory 20m $I sh -c 'head -c 60m /dev/zero | tail >/dev/null; exit $?'`},
		{Name: "`--cpus`", Script: `once --cpus 0.5 $I sh -c 'cd /sys/fs/cgroup; cat cpu.max 2>/dev/null || echo $(cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us)'`},
		{Name: "`--cpuset-cpus`", Script: `once --cpuset-cpus 0 $I grep Cpus_allowed_list /proc/self/status`},
		{Name: "`--pids-limit`", Script: `once --pids-limit 10 $I sh -c 'for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 3 & done; echo all' 2>/dev/null`},
		{Name: "`--ulimit`", Script: `once --ulimit nofile=100:200 --ulimit core=0 --ulimit nproc=4096:4096 $I sh -c 'ulimit -n; ulimit -Hn; ulimit -c'`},
		{Name: "`--oom-score-adj`", Script: `once --oom-score-adj 500 $I cat /proc/self/oom_score_adj`},
		{Name: "`--device-read-bps`", Script: `once --device-read-bps /dev/vda:1mb $I true`, Differ: &Difference{
			On: Podman, Outcome: Refused, Words: "names devices of the host",
			What: "the limit is of a disk of the host, which the VM does not have; on this machine Docker drops the option " +
				"itself, also with runc",
			WayOut: "leave the option out",
		}},
		{Name: "`update --memory`", Script: `new one --memory 100m $I sleep 1000; e update --memory 64m --memory-swap 64m one >/dev/null; e exec one sh -c 'cd /sys/fs/cgroup; cat memory.max 2>/dev/null || cat memory/memory.limit_in_bytes'`},
		{Name: "`update --cpus`", Only: Docker, Script: `new one $I sleep 1000; e update --cpus 0.25 one >/dev/null; e exec one sh -c 'cd /sys/fs/cgroup; cat cpu.max 2>/dev/null || echo $(cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us)'`},
		{Name: "`update --pids-limit`", Only: Docker, Script: `new one $I sleep 1000; e update --pids-limit 33 one >/dev/null; e exec one sh -c 'cd /sys/fs/cgroup; cat pids.max 2>/dev/null || cat pids/pids.max'`},
		{Name: "`update --restart`", Only: Docker, Script: `new one $I sleep 1000; e update --restart always one >/dev/null; e inspect -f '{{.HostConfig.RestartPolicy.Name}}' one`},
	}
}

// rights are capabilities, seccomp, devices and kernel parameters.
func rights() []Action {
	return []Action{
		{Name: "capabilities by default", Script: `once $I grep Cap /proc/self/status`},
		{Name: "`--cap-drop ALL`", Script: `once --cap-drop ALL $I grep Cap /proc/self/status`},
		{Name: "`--cap-add`", Script: `once --cap-add NET_ADMIN --cap-add SYS_TIME $I grep CapEff /proc/self/status`},
		{Name: "`--privileged`: mounts", Script: `once --privileged $I sh -c 'mount -t tmpfs x /mnt && echo mounted'`},
		{Name: "`--privileged`: capabilities", Script: `once --privileged $I grep CapEff /proc/self/status`, Differ: &Difference{
			Outcome: Differs, What: "all capabilities but CAP_SYS_RAWIO, which opens the whole guest's memory",
			WayOut: "none; a program that needs it would need the host's hardware",
		}},
		{Name: "`--security-opt no-new-privileges`", Script: `once --security-opt no-new-privileges $I grep NoNewPrivs /proc/self/status`},
		{Name: "seccomp by default", Script: `once $I sh -c 'grep Seccomp: /proc/self/status; unshare -U true 2>/dev/null || echo no'`, Differ: &Difference{
			On: Podman, Outcome: Differs,
			What: "Podman's filter allows user namespaces, which need CAP_SYS_ADMIN in the guest; making one is refused with " +
				"an error",
			WayOut: "`" + contract.ParamUserns + "` among `hypervisor.kernel_params`",
		}},
		{Name: "`--security-opt seccomp=unconfined`", Script: `once --security-opt seccomp=unconfined $I grep Seccomp: /proc/self/status`},
		{Name: "`--security-opt seccomp=FILE`", Script: `echo '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}' >$D/p; once --security-opt seccomp=$D/p $I sh -c 'mkdir /x 2>/dev/null || echo no'`},
		{Name: "`--sysctl` of the network", Script: `once --sysctl net.ipv4.ip_default_ttl=33 $I cat /proc/sys/net/ipv4/ip_default_ttl`},
		{Name: "`--sysctl` of IPC", Script: `once --sysctl kernel.msgmax=12345 $I cat /proc/sys/kernel/msgmax`},
		{Name: "`--device` of the host", Script: `once --device /dev/loop-control $I test -c /dev/loop-control`, Differ: &Difference{
			Outcome: Refused, Words: "/dev/loop-control",
			What:   "a device node of the host means nothing to the guest's kernel",
			WayOut: "`--privileged` gives the guest's own devices",
		}},
		{Name: "`--device /dev/fuse`", Script: `once --device /dev/fuse $I test -c /dev/fuse`},
		{Name: "`--device-cgroup-rule`", Script: `once --device-cgroup-rule 'c 1:3 rwm' $I true`},
		{Name: "`--gpus all`", Only: Docker, Script: `once --gpus all $I true`},
		{Name: "masked and read-only paths", Script: `once $I sh -c 'wc -c </proc/keys; echo 1 >/proc/sys/kernel/msgmax || echo no' 2>/dev/null`},
	}
}

// sharing asks for namespaces of others.
func sharing() []Action {
	host := func(what string) *Difference {
		return &Difference{
			Outcome: Refused, Words: what, What: "the guest has no namespaces of the host",
			WayOut: "leave the option out",
		}
	}
	other := func(what string) *Difference {
		return &Difference{
			Outcome: Refused, Words: what, What: "the other container is in another VM",
			WayOut: "a network that both are in; a volume; one container with both programs",
		}
	}
	return []Action{
		{Name: "`--network host`", Script: `e run --rm $R --network host $I true`, Differ: host("--net host")},
		{Name: "`--pid host`", Quick: true, Script: `once --pid host $I true`, Differ: host("--pid host")},
		{Name: "`--ipc host`", Script: `once --ipc host $I true`, Differ: host("--ipc host")},
		{Name: "`--uts host`", Script: `once --uts host $I true`, Differ: host("--uts host")},
		{Name: "`--network container:X`", Script: `new one $I sleep 1000; e run --rm $R --network container:one $I true`, Differ: other("--net container")},
		{Name: "`--pid container:X`", Script: `new one $I sleep 1000; once --pid container:one $I true`, Differ: other("--pid container")},
		{Name: "`--ipc container:X`", Script: `new one --ipc shareable $I sleep 1000; once --ipc container:one $I true`, Differ: other("--ipc container")},
		{Name: "`--ipc private`", Quick: true, Script: `once --ipc private $I sh -c 'echo x >/dev/shm/x; cat /dev/shm/x'`},
		{Name: "`--cgroupns host`", Script: `once --cgroupns host $I true`},
		{Name: "`--cgroup-parent`", Script: `once --cgroup-parent /front $I true`},
	}
}
