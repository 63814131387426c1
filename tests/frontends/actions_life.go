// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package frontends

// project runs a database, an application that waits for its health, and a web server with compose, twice.
const project = `e network create net1 >/dev/null
up() {
  e run -d $R --network net1 --name db -v vol:/data --health-cmd 'test -e /ready' --health-interval 1s $I sh -c \
    'echo row >>/data/rows; touch /ready; nc -ll -p 5432 -e cat /data/rows' >/dev/null
  wait_for sh -c "$E inspect -f '{{.State.Health.Status}}' db | grep -qx healthy"
  e run -d $R --network net1 --name app $I sh -c \
    'mkdir /w; nc db 5432 </dev/null >/w/rows; httpd -f -p 80 -h /w' >/dev/null
  e run -d $R --network net1 --name web -p 127.0.0.1:$P:80 $I sh -c \
    'mkdir /w; until wget -q -O /w/rows http://app/rows; do sleep 0.2; done; httpd -f -p 80 -h /w' >/dev/null
  wait_for busybox wget -qO- http://127.0.0.1:$P/rows; busybox wget -qO- http://127.0.0.1:$P/rows; echo .
}
up; e rm -f web app db >/dev/null; up`

// networks are names, addresses and ports.
func networks() []Action {
	const serve = `sh -c 'mkdir /w; echo served >/w/index.html; httpd -f -p 80 -h /w' >/dev/null; `
	return []Action{
		{Name: "`--network none`", Script: `e run --rm $R --network none $I sh -c 'ls /sys/class/net'`},
		{Name: "`--dns`, `--dns-search`, `--dns-option`", Only: Docker, Script: `once --dns 192.0.2.7 --dns-search example.org --dns-option ndots:3 $I sh -c 'grep -v ^# /etc/resolv.conf'`},
		{Name: "`--add-host`", Script: `once --add-host peer:192.0.2.8 $I grep peer /etc/hosts`},
		{Name: "`--mac-address`", Only: Docker, Script: `once --mac-address 02:42:0a:00:00:77 $I cat /sys/class/net/eth0/address`},
		{Name: "`-p` of TCP", Only: Docker, Script: `new one -p 127.0.0.1:$P:80 $I ` + serve + `wait_for busybox wget -qO- http://127.0.0.1:$P/; busybox wget -qO- http://127.0.0.1:$P/; e port one | wc -l`},
		{Name: "peers by address", Only: Docker, Script: `new one $I ` + serve + `ip=$(e inspect -f '{{.NetworkSettings.IPAddress}}' one); new two $I sleep 1000; wait_for e exec two wget -qO- http://$ip/; e exec two wget -qO- http://$ip/`},
		{Name: "user network: peers by name and alias", Only: Docker, Script: `e network create net1 >/dev/null; e run -d $R --network net1 --network-alias web --name one $I ` + serve + `e run -d $R --network net1 --name two $I sleep 1000 >/dev/null; for p in one web; do wait_for e exec two wget -qO- http://$p/; e exec two wget -qO- http://$p/; done 2>&1 | grep -c served`},
		{Name: "user network: `--ip`", Only: Docker, Script: `e network create --subnet 10.219.0.0/24 net1 >/dev/null; e run --rm $R --network net1 --ip 10.219.0.9 $I sh -c 'ip -o -4 addr show eth0 | tr -s " " | cut -d" " -f4'`},
		{Name: "user network: `--internal`", Only: Docker, Script: `e network create --internal --subnet 10.218.0.0/24 net1 >/dev/null; e run --rm $R --network net1 $I sh -c 'ip route | grep -c default'`},
		{Name: "`network connect` to a running container", Only: Docker, Script: `e network create --subnet 10.217.0.0/24 net1 >/dev/null; new one $I sleep 1000; e network connect --ip 10.217.0.9 net1 one; wait_for e exec one sh -c 'ip addr | grep -q 10.217.0.9' && echo there`},
		{Name: "`--link`", Only: Docker, Script: `new one $I ` + serve + `e run --rm $R --link one:web $I sh -c 'i=0; until wget -qO- http://web/ || [ $i -gt 50 ]; do i=$((i+1)); sleep 0.1; done'`},
		{Name: "three services: names, health, a volume; removed and made again", Only: Docker, Script: project},
		{Name: "`--sysctl net.ipv6…`", Only: Docker, Script: `once --sysctl net.ipv6.conf.all.disable_ipv6=1 $I cat /proc/sys/net/ipv6/conf/all/disable_ipv6`},
	}
}

// life has the actions on a container after its start.
func life() []Action {
	const service = `sh -c 'trap "echo bye; exit 3" TERM; trap "echo usr" USR1; echo up; while :; do sleep 0.1; done'; wait_for sh -c "$E logs one | grep -q up"; `
	return []Action{
		{Name: "`stop`", Script: `new one $I ` + service + `e stop -t 60 one; e inspect -f '{{.State.Status}} {{.State.ExitCode}}' one; e logs one`},
		{Name: "`stop` of one that ignores it", Script: `new one $I sh -c 'trap "" TERM; echo up; while :; do sleep 1; done'; wait_for sh -c "$E logs one | grep -q up"; e stop -t 1 one 2>/dev/null; e inspect -f '{{.State.ExitCode}}' one`},
		{Name: "`kill`", Script: `new one $I ` + service + `e kill one; e wait one`},
		{Name: "`kill -s`", Script: `new one $I ` + service + `e kill -s USR1 one; wait_for sh -c "$E logs one | grep -q usr"; e logs one`},
		{Name: "`pause`, `unpause`", Script: `new one $I sleep 1000; e pause one >/dev/null; e ps -a --format '{{.State}}'; e unpause one >/dev/null; e exec one echo again`},
		{Name: "`exec` in a paused container", Script: `new one $I sleep 1000; e pause one >/dev/null; e exec one true`},
		{Name: "`wait`", Script: `new one $I sh -c 'sleep 1; exit 6'; e wait one`},
		{Name: "`rename`", Script: `new one $I sleep 1000; e rename one two; e exec two echo renamed`},
		{Name: "`rm` of a running container", Script: `new one $I sleep 1000; e rm one`},
		{Name: "`rm -f`", Script: `new one $I sleep 1000; e rm -f one; e ps -aq | wc -l`},
		{Name: "`--restart on-failure:2`", Script: `new one --restart on-failure:2 $I sh -c 'echo try; exit 1'; wait_for sh -c "test \$($E logs one | grep -c try) = 3"; e logs one`},
		{Name: "`--restart always` after the end of its process", Script: `new one --restart always $I sh -c 'echo up; sleep 2'; wait_for sh -c "test \$($E logs one | grep -c up) -ge 2" && echo again`},
		{Name: "`--health-cmd`", Only: Docker, Script: `new one --health-cmd 'test -e /healthy' --health-interval 1s --health-retries 1 --health-start-period 0s $I sleep 1000; wait_for sh -c "$E inspect -f '{{.State.Health.Status}}' one | grep -q unhealthy" && echo unhealthy; e exec one touch /healthy; wait_for sh -c "$E inspect -f '{{.State.Health.Status}}' one | grep -qx healthy" && echo healthy`},
		{Name: "`healthcheck run`", Only: Podman, Script: `new one --health-cmd 'test -e /healthy' --health-interval disable $I sleep 1000; e healthcheck run one; e exec one touch /healthy; e healthcheck run one`},
		{Name: "`init`", Only: Podman, Script: `e create $R $N --name one $I echo begun >/dev/null; e init one >/dev/null; e ps -a --format '{{.State}}'; e start -a one`},
		{Name: "`container checkpoint`", Only: Podman, Script: `new one $I sleep 1000; e container checkpoint one 2>/dev/null; echo $?`},
	}
}

// looking has the actions that show the state of a container.
func looking() []Action {
	ps := Difference{
		Outcome: Refused, Words: "run in a VM",
		What:   "the engine looks for the processes in the host's `/proc`, where they are not",
		WayOut: "`exec CONTAINER ps`",
	}
	return []Action{
		{Name: "`ps`", Script: `new one $I sleep 1000; e ps --format '{{.Names}} {{.State}} {{.Image}}'`},
		{Name: "`top`", Quick: true, Script: `new one $I sleep 1000; e top one >/dev/null && echo shown`, Differ: &ps},
		{Name: "`top` by the container's own ps", Only: Podman, Quick: true, Script: `new one $I sleep 1000; e top one -o comm`},
		{Name: "`stats --no-stream`: memory", Script: `new one $I sleep 1000; e stats --no-stream --format '{{.MemUsage}}' one | grep -c '^0B'`},
		{Name: "`stats --no-stream`: number of processes", Only: Docker, Script: `new one $I sh -c 'sleep 1000 & sleep 1000 & wait'; sleep 1; e stats --no-stream --format '{{.PIDs}}' one`},
		{Name: "`stats` with Podman", Only: Podman, Script: `new one $I sh -c 'sleep 1000 & sleep 1000 & wait'; sleep 1; e stats --no-stream --format '{{.PIDs}}' one`, Differ: &Difference{
			Outcome: Differs,
			What:    "Podman reads the control group of the container's pid, which is the stand-in's, and shows the use of that",
			WayOut:  "`coco top`",
		}},
		{Name: "`events`", Only: Docker, Script: `c=$(e create $R $N $I true); e start -a $c; e rm $c >/dev/null; e events --since 60s --until $(($(date +%s)+1)) --filter container=$c --format '{{.Action}}' | sort`},
		{Name: "`inspect`: state and pid", Script: `new one $I sleep 1000; e inspect -f '{{.State.Running}} {{.State.Status}}' one; test -d /proc/$(e inspect -f '{{.State.Pid}}' one) && echo lives`},
		{Name: "`ps -s`: size", Script: `new one $I sh -c 'head -c 1000000 /dev/zero >/f'; e wait one; e ps -as --format '{{.Size}}' | cut -d' ' -f1`},
	}
}

// pods are Podman's pods.
func pods() []Action {
	differ := &Difference{
		Outcome: Refused, Words: "run it without a pod",
		What:   "each container has a VM of its own, and the containers of a pod share namespaces of the host's kernel",
		WayOut: "run the containers without a pod; Kubernetes' pods share one VM",
	}
	return []Action{
		{Name: "`pod create --infra=false`, `run --pod`", Only: Podman, Script: `e pod create --infra=false --name p >/dev/null; once --pod p $I echo in`, Differ: differ},
		{Name: "`pod create`, `run --pod`", Only: Podman, Script: `e pod create --infra=true --infra-image $I --infra-command 'sleep 1000' --share ipc --name p >/dev/null; e run --rm $R --pod p $I true; c=$?; e pod rm -f p >/dev/null 2>&1; exit $c`, Differ: differ},
	}
}
