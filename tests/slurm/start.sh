#!/bin/bash
# A Slurm cluster of two nodes on this machine: tests/slurm/start.sh FOLDER; FOLDER/stop ends it.
# Needs Debian's slurmctld, slurmd, slurm-client and munge; they are not used in /etc.
# Each node has 4 CPUs and 2 GPUs by its word alone. Prints the SLURM_CONF to export.
set -euo pipefail
here=$(mkdir -p "$1" && cd "$1" && pwd)
export PATH=$PATH:/usr/sbin:/sbin
if pids=$(cat "$here"/*.pid 2>/dev/null); then kill $pids 2>/dev/null || true; fi
rm -rf "$here" && mkdir -p "$here"/{state,n1,n2} && chmod 755 "$here"
port=${SLURM_TEST_PORT:-$(python3 - <<'END'
import random, socket
while True:  # three ports that are free
    port = random.SystemRandom().randrange(20000, 30000, 10)
    places = [socket.socket() for _ in range(3)]
    try:
        for number, place in enumerate(places):
            place.bind(("127.0.0.1", port + number))
        break
    except OSError:
        pass
    finally:
        [place.close() for place in places]
print(port)
END
)}
host=$(hostname -s)
me=$(id -un)
dd if=/dev/urandom of="$here/munge.key" bs=128 count=1 status=none && chmod 400 "$here/munge.key"
cat >"$here/slurm.conf" <<END
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=$me
SlurmdUser=$me
AuthType=auth/munge
AuthInfo=socket=$here/munge.socket,cred_expire=5
StateSaveLocation=$here/state
SlurmdSpoolDir=$here/%n
SlurmctldPidFile=$here/slurmctld.pid
SlurmdPidFile=$here/slurmd-%n.pid
SlurmctldLogFile=$here/slurmctld.log
SlurmdLogFile=$here/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_min_interval=100000,batch_sched_delay=0,defer_batch
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MessageTimeout=60
BatchStartTimeout=120
KillWait=${SLURM_TEST_KILL_WAIT:-10}
ReturnToService=2
GresTypes=gpu
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 1)) CPUs=4 Gres=gpu:2 State=UNKNOWN
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 2)) CPUs=4 Gres=gpu:2 State=UNKNOWN
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
END
echo "NodeName=n[1-2] Name=gpu File=/dev/tty[0-1]" >"$here/gres.conf"
cat >"$here/stop" <<END
#!/bin/bash
export SLURM_CONF=$here/slurm.conf
scancel --user=$me --signal=KILL --full 2>/dev/null
for pid in "$here"/slurmd-n?.pid "$here"/slurmctld.pid "$here"/munged.pid; do
  [ -e "\$pid" ] && kill "\$(cat "\$pid")" 2>/dev/null
done
exit 0
END
chmod +x "$here/stop"
munged --key-file="$here/munge.key" --socket="$here/munge.socket" --pid-file="$here/munged.pid" \
  --log-file="$here/munged.log" --seed-file="$here/munged.seed" --force
export SLURM_CONF=$here/slurm.conf
slurmctld -i >/dev/null
for node in n1 n2; do slurmd -N $node; done
for _ in $(seq 100); do
  [ "$(sinfo -h -N -t idle -o %N 2>/dev/null | sort -u | wc -l)" = 2 ] && break
  sleep 0.1
done
sinfo -h -N -o '%N %t' >&2
echo "$SLURM_CONF"
