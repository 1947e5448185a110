"""Package of type ament_python; pip can install it too. What it needs to run is in package.xml and requirements/."""

from glob import glob
from importlib.util import find_spec
from os.path import dirname, isfile

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

PACKAGE = 'cosmos3_ros'
KERNELS = (f'{PACKAGE}/guard', 'engine/observation')


class BuildKernels(build_ext):
    """Compiles the kernels, and says what is missing where Cython is."""

    def initialize_options(self):
        """The C files are of no use afterwards; they stay in the build folder."""
        super().initialize_options()
        self.cython_c_in_temp = True

    def run(self):
        """Compile."""
        if find_spec('Cython') is None:
            raise SystemExit(f'{PACKAGE}: its kernels need Cython 3.0.8 or newer to be compiled; install cython3')
        super().run()


def kernels():
    """Each compiled module. The guard's checks rely on comparisons that not-a-number fails, and on rounding."""
    options = ['-O3', '-fno-fast-math', '-ffp-contract=off']
    sources = sorted(path for place in KERNELS for path in glob(f'{place}/kernels_*.pyx'))
    return [Extension(path[: -len('.pyx')].replace('/', '.'), [path], extra_compile_args=options) for path in sources]


def tree(folder):
    """Everything below `folder` as data_files entries, at the same place below the package's share directory."""
    files = [
        path for path in sorted(glob(f'{folder}/**', recursive=True)) if isfile(path) and '__pycache__' not in path
    ]
    folders = sorted({dirname(path) for path in files})
    return [(f'share/{PACKAGE}/{place}', [path for path in files if dirname(path) == place]) for place in folders]


setup(
    name=PACKAGE,
    version='0.1.0',
    description='Cosmos 3 on ROS 2: one checkpoint as policy, imagination and planner of a robot, behind a guard',
    license='Apache-2.0',
    maintainer='cosmos3_ros maintainers',
    maintainer_email='maintainers@cosmos3-ros.invalid',
    python_requires='>=3.12',
    packages=find_packages(include=['engine', 'engine.*', PACKAGE, f'{PACKAGE}.*']),
    package_data={
        'engine': ['py.typed', '**/*.json', '**/*.yaml', 'observation/*.pyx', 'observation/*.pyi'],
        PACKAGE: ['guard/*.pyx', 'guard/*.pyi', '*.html'],
    },
    ext_modules=kernels(),
    cmdclass={'build_ext': BuildKernels},
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{PACKAGE}']),
        (f'share/{PACKAGE}', ['package.xml']),
        *tree('launch'),
        *tree('config'),
        *tree('models'),
    ],
    install_requires=['setuptools'],
    extras_require={'test': ['pytest']},
    zip_safe=False,
    entry_points={
        'console_scripts': [
            f'cosmos3 = {PACKAGE}.cli:main',
            f'host = {PACKAGE}.host:main',
            f'guard = {PACKAGE}.guard_process:main',
            f'instruct = {PACKAGE}.instruct:main',
            f'sim_robot = {PACKAGE}.sim_robot_node:main',
            f'replay_robot = {PACKAGE}.replay_robot_node:main',
            f'recorder = {PACKAGE}.recorder_process:main',
            f'safety_sim = {PACKAGE}.safety_process:main',
            f'viewer = {PACKAGE}.viewer_process:main',
        ],
    },
)
